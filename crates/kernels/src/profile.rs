//! The numerics profile: which instruction set computes, and so which bits come out.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// An instruction set path, in rising order of what it asks of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain loops, multiplication and addition rounded separately; runs everywhere with the same bits.
    Portable,
    /// AVX2 and FMA on x86-64.
    Avx2,
    /// AVX-512 F, BW, DQ and VL on x86-64; the bits of [`Isa::Avx2`].
    Avx512,
    /// AVX-512 with `vdpbf16ps` for bf16 products, which takes denormals for zero and flushes denormal results.
    Avx512Bf16,
    /// AVX-512 with `vpdpwssd` for bf16 products, whose runs of k share powers of two (see [`crate::gemm`]).
    Avx512Vnni,
}

impl Isa {
    /// All paths, in rising order.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Avx512Vnni];

    /// The name in options and fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let isa = Self::ALL.into_iter().find(|isa| isa.name() == text);
        isa.ok_or_else(|| Error::new("profile", ErrorKind::ProfileName { found: text.to_owned() }))
    }
}

/// An [`Isa`] that this processor is known to have.
///
/// It is a value: found once, handed down, compared with a fingerprint.
/// Kernels rely on it to call instructions that not every processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile(Isa);

impl Profile {
    /// The profile of every machine.
    pub const PORTABLE: Self = Self(Isa::Portable);

    /// The profile that is fastest on this processor.
    ///
    /// It is the highest one, but that on AMD's processors `vdpbf16ps`, which has twice the rate of f32 products there and half that
    /// rate on Intel's, comes before `vpdpwssd`, which has twice the rate on both.
    pub fn detect() -> Self {
        let best = Self::available().last().unwrap_or(Self::PORTABLE);
        if is_amd() { Self::new(Isa::Avx512Bf16).unwrap_or(best) } else { best }
    }

    /// The same without block floating point: every number counts in full.
    pub fn exact(self) -> Self {
        if self.0 == Isa::Avx512Vnni { Self(Isa::Avx512) } else { self }
    }

    /// All profiles of this processor, in rising order.
    pub fn available() -> impl Iterator<Item = Self> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Self)
    }

    /// The profile of an instruction set, or [`ErrorKind::ProfileAbsent`].
    pub fn new(isa: Isa) -> Result<Self> {
        if isa.is_available() {
            return Ok(Self(isa));
        }
        let available = Self::available().map(|it| it.0.name()).collect::<Vec<_>>().join(", ");
        Err(Error::new("profile", ErrorKind::ProfileAbsent { found: isa, available }))
    }

    /// Its instruction set.
    pub fn isa(self) -> Isa {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_an_unknown_name_is_told() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        let error = "sse9".parse::<Isa>().unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::ProfileName { found: "sse9".into() });
        assert_eq!(error.place(), "profile");
    }

    #[test]
    fn portable_is_available_and_the_detected_profile_is_one_of_the_last_two() {
        let all: Vec<_> = Profile::available().collect();
        assert_eq!(all[0], Profile::PORTABLE);
        assert!(all.iter().rev().take(2).any(|it| *it == Profile::detect()));
        assert!(Profile::new(Isa::Portable).is_ok());
    }
}
