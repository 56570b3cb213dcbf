//! How overlayfs writes down what a layer hides: a directory that covers those below it.
//!
//! Invariant: what `cover` wrote, `covers` reads.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// The first is what root writes, the second what overlayfs reads in a user namespace.
const NAMES: [&CStr; 2] = [c"trusted.overlay.opaque", c"user.overlay.opaque"];
const YES: &[u8] = b"y";

/// Makes a directory hide everything the layers below have in its place.
pub(crate) fn cover(directory: &Path) -> io::Result<()> {
    let path = c_path(directory)?;
    let mut last = None;
    for name in NAMES {
        // SAFETY: both names end with a zero byte, and the value is as long as is said.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::setxattr(path.as_ptr(), name.as_ptr(), YES.as_ptr().cast(), YES.len(), 0)
        };
        if result == 0 {
            return Ok(());
        }
        last = Some(io::Error::last_os_error());
    }
    last.map_or(Ok(()), Err)
}

/// Whether a directory hides what the layers below have in its place.
pub(crate) fn covers(directory: &Path) -> bool {
    let Ok(path) = c_path(directory) else { return false };
    NAMES.into_iter().any(|name| {
        let mut value = [0u8; 1];
        // SAFETY: both names end with a zero byte, and the buffer is as long as is said.
        #[allow(unsafe_code)]
        let length = unsafe {
            libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        length == 1 && value == YES
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
