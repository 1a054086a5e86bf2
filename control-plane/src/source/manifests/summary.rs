//! What a folder that has been read holds, in numbers and names.

use std::collections::BTreeMap;
use std::path::Path;

use super::Folder;
use crate::object::ObjectId;

impl Folder {
    /// How many objects the files define that are read so far, right or wrong.
    pub fn objects(&self) -> usize {
        self.claims.len()
    }

    /// How many documents of which other kinds there were, `apps/v1 Deployment`.
    pub fn ignored(&self) -> &BTreeMap<String, usize> {
        &self.ignored
    }

    /// Files that were read and have nothing in them.
    pub fn files_without_object(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|(_, file)| file.empty).map(|(path, _)| path.as_path())
    }

    /// Objects that do not say their namespace, and so are in `default`.
    pub fn without_namespace(&self) -> impl Iterator<Item = &ObjectId> {
        self.files.values().flat_map(|file| &file.without_namespace)
    }
}
