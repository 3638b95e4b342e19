//! The tree of modules as a graph sees it: names, classes, and who holds whom.

use std::collections::BTreeSet;

use crate::error::{ErrorKind, Result};

/// A module of a [`ModuleTree`]; ids rise in the order in which modules are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(usize);

/// Names and classes of modules; a module may be held in two places and is then listed under the first.
#[derive(Clone, Debug)]
pub struct ModuleTree {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    class: &'static str,
    parent: Option<ModuleId>,
    children: Vec<(String, ModuleId)>,
}

impl ModuleId {
    /// Position in [`ModuleTree::ids`].
    pub fn index(self) -> usize {
        self.0
    }
}

impl ModuleTree {
    /// A tree of a root without a name.
    pub fn new(root_class: &'static str) -> Self {
        Self { entries: vec![Entry { path: String::new(), class: root_class, parent: None, children: Vec::new() }] }
    }

    /// The root.
    pub fn root(&self) -> ModuleId {
        ModuleId(0)
    }

    /// Adds a module `name` of class `class` under `parent`.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateModule`].
    pub fn add(&mut self, parent: ModuleId, name: &str, class: &'static str) -> Result<ModuleId> {
        let id = ModuleId(self.entries.len());
        let path = self.attach(parent, name, id)?;
        self.entries.push(Entry { path, class, parent: Some(parent), children: Vec::new() });
        Ok(id)
    }

    /// Holds `module` in a second place, under `parent`.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateModule`].
    pub fn share(&mut self, parent: ModuleId, name: &str, module: ModuleId) -> Result<()> {
        self.attach(parent, name, module).map(drop)
    }

    fn attach(&mut self, parent: ModuleId, name: &str, id: ModuleId) -> Result<String> {
        let holder = &mut self.entries[parent.0];
        let path = if holder.path.is_empty() { name.to_owned() } else { format!("{}.{name}", holder.path) };
        if holder.children.iter().any(|(existing, _)| existing == name) {
            return Err(ErrorKind::DuplicateModule { name: path }.into());
        }
        holder.children.push((name.to_owned(), id));
        Ok(path)
    }

    /// All modules, the root first, each before what it holds.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = ModuleId> + ExactSizeIterator + use<> {
        (0..self.entries.len()).map(ModuleId)
    }

    /// The dotted name; empty for the root.
    pub fn path(&self, module: ModuleId) -> &str {
        &self.entries[module.0].path
    }

    /// The class name.
    pub fn class(&self, module: ModuleId) -> &'static str {
        self.entries[module.0].class
    }

    /// Who holds it first; none for the root.
    pub fn parent(&self, module: ModuleId) -> Option<ModuleId> {
        self.entries[module.0].parent
    }

    /// What it holds, in order, with local names.
    pub fn children(&self, module: ModuleId) -> impl Iterator<Item = (&str, ModuleId)> {
        self.entries[module.0].children.iter().map(|(name, id)| (name.as_str(), *id))
    }

    /// Looks a module up by its dotted name.
    pub fn find(&self, path: &str) -> Option<ModuleId> {
        let mut at = self.root();
        if path.is_empty() {
            return Some(at);
        }
        for part in path.split('.') {
            at = self.children(at).find(|(name, _)| *name == part)?.1;
        }
        Some(at)
    }
}

/// All modules whose name or class `is_match(name, class)` accepts.
pub fn match_modules(tree: &ModuleTree, mut is_match: impl FnMut(&str, &str) -> bool) -> BTreeSet<ModuleId> {
    tree.ids().filter(|&id| is_match(tree.path(id), tree.class(id))).collect()
}

/// Modules that hold a target strictly below them; what lies below a target counts for nothing.
pub fn get_sequential_ancestors(tree: &ModuleTree, targets: &BTreeSet<ModuleId>) -> BTreeSet<ModuleId> {
    let mut ancestors = BTreeSet::new();
    leads_to_target(tree, tree.root(), targets, &mut ancestors);
    ancestors
}

fn leads_to_target(
    tree: &ModuleTree,
    module: ModuleId,
    targets: &BTreeSet<ModuleId>,
    ancestors: &mut BTreeSet<ModuleId>,
) -> bool {
    if targets.contains(&module) {
        return true;
    }
    // Every child is visited, whatever an earlier one found.
    let found =
        tree.children(module).fold(false, |any, (_, child)| leads_to_target(tree, child, targets, ancestors) || any);
    if found {
        ancestors.insert(module);
    }
    found
}
