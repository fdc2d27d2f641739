//! Elements of a page or a drawing. Tags are balanced and text is escaped by construction.

use std::fmt;

/// Elements of HTML that have no content.
const VOID: [&str; 2] = ["meta", "br"];

/// An element.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Element(Element),
    Text(String),
    /// A style sheet of ours.
    Style(&'static str),
}

/// An empty element.
pub(super) fn el(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

impl Element {
    /// With an attribute.
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// With attributes that are lengths.
    pub(super) fn at<const N: usize>(self, lengths: [(&'static str, f64); N]) -> Self {
        lengths.into_iter().fold(self, |element, (name, value)| element.with(name, length(value)))
    }

    /// With text at the end.
    pub(super) fn text(mut self, text: impl ToString) -> Self {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    /// With an element at the end.
    pub(super) fn child(mut self, child: Self) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    /// With elements at the end.
    pub(super) fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    /// With a style sheet at the end.
    pub(super) fn style(mut self, sheet: &'static str) -> Self {
        self.children.push(Node::Style(sheet));
        self
    }
}

/// A length in a drawing, to a tenth of a pixel. What is no number is 0, so that a drawing stays one.
pub(super) fn length(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// Writes text so that none of it is markup.
fn escape(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for letter in text.chars() {
        match letter {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '"' => f.write_str("&quot;")?,
            '\'' => f.write_str("&#39;")?,
            letter => write!(f, "{letter}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"")?;
            escape(f, value)?;
            f.write_str("\"")?;
        }
        if VOID.contains(&self.name) {
            return f.write_str("/>");
        }
        f.write_str(">")?;
        for child in &self.children {
            match child {
                Node::Element(element) => write!(f, "{element}")?,
                Node::Text(text) => escape(f, text)?,
                Node::Style(sheet) => f.write_str(sheet)?,
            }
        }
        write!(f, "</{}>", self.name)?;
        // A line an element where space means nothing keeps the file readable.
        if matches!(self.name, "tr" | "p" | "li" | "h1" | "h2" | "h3" | "table" | "svg" | "section" | "g") {
            f.write_str("\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let element = el("b").with("title", "\"<&'").text("a < b & c").child(el("br")).style("x > y {}");
        assert_eq!(
            element.to_string(),
            "<b title=\"&quot;&lt;&amp;&#39;\">a &lt; b &amp; c<br/>x > y {}</b>"
        );
    }

    #[test]
    fn lengths_are_numbers() {
        assert_eq!([1.0, 1.25, f64::NAN, f64::INFINITY, -0.04].map(length), ["1", "1.2", "0", "0", "-0"]);
    }
}
