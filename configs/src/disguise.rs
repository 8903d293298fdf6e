//! Files that are not what their names say, told by their first bytes: what a download or a clone
//! leaves in the place of the file itself.

use std::fmt;

/// Bytes of the start of a file that are enough for [`Disguise::of`].
pub const DISGUISE_BYTES: usize = 64;

/// What stands in the place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disguise {
    /// The pointer of Git LFS
    /// (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer>).
    LfsPointer,
    /// A page of the web.
    WebPage,
    /// A message of the hub.
    HubMessage,
    /// A ZIP archive, as `torch.save` writes it.
    Zip,
    /// A GGUF file.
    Gguf,
    /// A gzip file.
    Gzip,
    /// A Zstandard file.
    Zstandard,
    /// UTF-16 text.
    Utf16,
}

impl Disguise {
    /// What `start`, the first bytes of a file, gives away.
    #[must_use]
    pub fn of(start: &[u8]) -> Option<Self> {
        const HUB: [&[u8]; 4] =
            [b"Entry not found", b"Repository not found", b"Access to model", b"Invalid username or password"];
        let text = start.trim_ascii_start();
        let begins = |with: &[u8]| text.len() >= with.len() && text[..with.len()].eq_ignore_ascii_case(with);
        Some(match start {
            _ if start.starts_with(b"version https://git-lfs") => Self::LfsPointer,
            _ if begins(b"<!doctype html") || begins(b"<html") => Self::WebPage,
            _ if HUB.iter().any(|message| start.starts_with(message)) => Self::HubMessage,
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            [b'G', b'G', b'U', b'F', ..] => Self::Gguf,
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstandard,
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Self::Utf16,
            _ => return None,
        })
    }

    /// The way to the file itself.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::LfsPointer => {
                "the repository was cloned without git-lfs: `git lfs pull` in it fetches the file, or download it"
            }
            Self::WebPage => {
                "download it again from the address of the file, with `/resolve/` in the place of `/blob/`; a gated \
                 repository needs a token"
            }
            Self::HubMessage => "download it again; a private or gated repository needs a token",
            Self::Zip => "if `torch.save` wrote it, save the model with `safe_serialization=True`",
            Self::Gguf => "name it `.gguf`",
            Self::Gzip => "name it `.gz`, or decompress it with `gzip -d`",
            Self::Zstandard => "name it `.zst`, or decompress it with `zstd -d`",
            Self::Utf16 => "save it as UTF-8",
        }
    }
}

impl fmt::Display for Disguise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LfsPointer => "a Git LFS pointer, not the file that it stands for",
            Self::WebPage => "a web page",
            Self::HubMessage => "a message of the hub, not the file that was asked for",
            Self::Zip => "a ZIP archive",
            Self::Gguf => "a GGUF file",
            Self::Gzip => "compressed with gzip",
            Self::Zstandard => "compressed with Zstandard",
            Self::Utf16 => "UTF-16 text",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for (start, expected) in [
            (&pointer[..], Some(Disguise::LfsPointer)),
            (b"\n <!DOCTYPE html>", Some(Disguise::WebPage)),
            (b"<HTML lang=en>", Some(Disguise::WebPage)),
            (b"Entry not found", Some(Disguise::HubMessage)),
            (b"PK\x03\x04rest", Some(Disguise::Zip)),
            (b"\xff\xfe{\0", Some(Disguise::Utf16)),
            (b"{\"model_type\": \"llama\"}", None),
            (b"version 2", None),
            (b"", None),
        ] {
            assert_eq!(Disguise::of(start), expected, "{}", start.escape_ascii());
        }
    }
}
