//! The settings that Hugging Face tools share, as a value.

use std::{env, fmt, path::PathBuf};

/// Where the hub and its cache are.
#[derive(Clone, Default)]
pub struct HubEnvironment {
    /// `HF_HUB_CACHE`.
    pub hf_hub_cache: Option<PathBuf>,
    /// `HUGGINGFACE_HUB_CACHE`, the older name.
    pub huggingface_hub_cache: Option<PathBuf>,
    /// `HF_HOME`.
    pub hf_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `HF_ENDPOINT`; none is the public hub.
    pub endpoint: Option<String>,
    /// `HF_TOKEN`; sent to the endpoint only, and never printed.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`, or `TRANSFORMERS_OFFLINE`: nothing is downloaded.
    pub offline: bool,
}

impl HubEnvironment {
    /// Reads the environment variables of this process.
    pub fn from_process() -> Self {
        let path = |name| env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let text = |name| env::var(name).ok().map(|it| it.trim().to_owned()).filter(|it| !it.is_empty());
        let is_set = |name| text(name).is_some_and(|it| is_true(&it));
        Self {
            hf_hub_cache: path("HF_HUB_CACHE"),
            huggingface_hub_cache: path("HUGGINGFACE_HUB_CACHE"),
            hf_home: path("HF_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            home: path("HOME"),
            endpoint: text("HF_ENDPOINT"),
            token: text("HF_TOKEN"),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
        }
    }

    /// The directory with one `models--ORG--NAME` folder for each model.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        let named = self.hf_hub_cache.as_ref().or(self.huggingface_hub_cache.as_ref());
        let below_home = || {
            let cache = || self.xdg_cache_home.clone().or_else(|| Some(self.home.as_ref()?.join(".cache")));
            self.hf_home.clone().or_else(|| Some(cache()?.join("huggingface"))).map(|it| it.join("hub"))
        };
        named.cloned().or_else(below_home)
    }
}

impl fmt::Debug for HubEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubEnvironment")
            .field("cache_dir", &self.cache_dir())
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_directory_follows_the_order_of_the_reference() {
        let mut it = HubEnvironment::default();
        assert_eq!(it.cache_dir(), None);
        it.home = Some("/h".into());
        assert_eq!(it.cache_dir(), Some("/h/.cache/huggingface/hub".into()));
        it.xdg_cache_home = Some("/x".into());
        assert_eq!(it.cache_dir(), Some("/x/huggingface/hub".into()));
        it.hf_home = Some("/f".into());
        assert_eq!(it.cache_dir(), Some("/f/hub".into()));
        it.huggingface_hub_cache = Some("/o".into());
        assert_eq!(it.cache_dir(), Some("/o".into()));
        it.hf_hub_cache = Some("/n".into());
        assert_eq!(it.cache_dir(), Some("/n".into()));
    }

    #[test]
    fn the_token_is_never_printed() {
        let it = HubEnvironment { token: Some("hf_secret".to_owned()), ..HubEnvironment::default() };
        assert!(!format!("{it:?}").contains("secret"));
    }

    #[test]
    fn true_is_spelt_in_four_ways() {
        assert!(["1", "on", "Yes", "TRUE"].into_iter().all(is_true));
        assert!(!["0", "", "off", "2"].into_iter().any(is_true));
    }
}
