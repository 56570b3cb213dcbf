//! The serial port of an instance: a file that is appended to, read, and kept small.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// How much of the serial port's output is kept, in bytes; at twice as much the older half goes.
pub(crate) const CONSOLE_BYTES_MAX: u64 = 512 * 1024;

/// Opens the console for appending.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Adds a line of the server's own.
pub(crate) fn say(path: &Path, line: &str) {
    // The console is a courtesy: an instance works without it.
    let _ = open(path).and_then(|mut console| writeln!(console, "tidegate: {line}"));
}

/// The newest part of what was written.
pub(crate) fn read(path: &Path) -> String {
    tail(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Cuts an overlong console to its newest part. Whoever writes, appends: nothing is torn, though a line
/// written at this very moment may be lost.
pub(crate) fn trim(path: &Path) {
    let is_long = fs::metadata(path).is_ok_and(|found| found.len() > 2 * CONSOLE_BYTES_MAX);
    if !is_long {
        return;
    }
    let cut = |newest: Vec<u8>| {
        let mut console = OpenOptions::new().append(true).open(path)?;
        console.set_len(0)?;
        console.write_all(&newest)
    };
    let _ = tail(path).and_then(cut);
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut console = File::open(path)?;
    let length = console.metadata()?.len();
    console.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_BYTES_MAX)))?;
    let mut newest = Vec::new();
    console.take(CONSOLE_BYTES_MAX).read_to_end(&mut newest)?;
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_keeps_its_newest_part() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let path = temporary.path().join("console.log");
        assert_eq!(read(&path), "");
        say(&path, "first");
        let line = "x".repeat(1023) + "\n";
        fs::write(&path, line.repeat(1025)).expect("written");
        let mut writer = open(&path).expect("opened");
        trim(&path);
        writer.write_all(b"last\n").expect("written");
        assert_eq!(fs::metadata(&path).expect("there").len(), CONSOLE_BYTES_MAX + 5);
        assert!(read(&path).ends_with("last\n"));
    }
}
