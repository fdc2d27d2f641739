//! A report as people and programs read it: tables on a terminal, one JSON file, one page, a few sentences.

pub(crate) mod baseline;
mod charts;
pub(crate) mod format;
pub(crate) mod html;
pub(crate) mod json;
mod markup;
mod plot;
pub(crate) mod table;
pub(crate) mod text;

use std::path::{Path, PathBuf};

use crate::model::Report;

/// Why a report could not be written or read.
#[derive(Debug)]
pub(crate) struct FileError {
    path: PathBuf,
    why: String,
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for FileError {}

impl FileError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

/// The files of a report.
pub(crate) const FILES: [&str; 3] = ["report.json", "report.html", "summary.txt"];

/// Writes `report.json`, `report.html` and `summary.txt` into a directory, which is made if it is missing. Returns what
/// it wrote.
pub(crate) fn write(report: &Report, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    std::fs::create_dir_all(directory).map_err(|error| FileError::new(directory, error))?;
    let json = json::render(report).map_err(|error| FileError::new(&directory.join("report.json"), error))?;
    let mut written = Vec::new();
    for (name, content) in FILES.into_iter().zip([json, html::render(report), text::render(report)]) {
        // Beside it first, so that a report that is there stays whole until the new one is.
        let (path, draft) = (directory.join(name), directory.join(format!(".{name}.new")));
        let replaced = std::fs::write(&draft, content).and_then(|()| std::fs::rename(&draft, &path));
        replaced.map_err(|error| FileError::new(&path, error))?;
        written.push(path);
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
