//! Labels: a short text with an optional longer form, e.g. the name of a run and its path.

use crate::escape::escape;
use std::fmt::{self, Display, Formatter};

/// A short text with an optional longer form that a page shows on hover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The text.
    pub text: String,
    /// The longer form.
    pub hover: Option<String>,
}

impl Label {
    /// HTML of the text, in an element with a `title` attribute if there is a longer form.
    pub(crate) fn to_html(&self) -> String {
        let text = escape(&self.text);
        match &self.hover {
            Some(hover) => format!("<span title=\"{}\">{text}</span>", escape(hover)),
            None => text,
        }
    }

    /// Content of an SVG `<text>` element.
    pub(crate) fn to_svg(&self) -> String {
        let hover = self.hover.as_ref().map(|hover| format!("<title>{}</title>", escape(hover)));
        format!("{}{}", hover.unwrap_or_default(), escape(&self.text))
    }
}

/// Displays the text without the longer form.
impl Display for Label {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl From<String> for Label {
    fn from(text: String) -> Self {
        Self { text, hover: None }
    }
}

impl From<&str> for Label {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl PartialEq<str> for Label {
    fn eq(&self, text: &str) -> bool {
        self.text == text
    }
}

impl PartialEq<&str> for Label {
    fn eq(&self, text: &&str) -> bool {
        self.text == *text
    }
}
