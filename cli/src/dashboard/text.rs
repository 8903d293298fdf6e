//! Conversion of a buffer of cells to lines of text.

use crate::output::Style;
use ratatui::{
    buffer::{Buffer, Cell},
    style::Color,
};

/// The lines of a buffer without trailing blanks, with colours as ANSI escapes if `style` has them.
pub fn text(picture: &Buffer, style: Style) -> String {
    let width = usize::from(picture.area.width.max(1));
    picture.content.chunks(width).map(|cells| line(cells, style)).collect::<Vec<_>>().join("\n")
}

fn line(cells: &[Cell], style: Style) -> String {
    let end = cells.iter().rposition(|cell| cell.symbol() != " ").map_or(0, |last| last + 1);
    let mut line = String::new();
    let mut current = 0;
    for cell in &cells[..end] {
        let wanted = if style == Style::Colour { escape_code(cell.fg) } else { 0 };
        if wanted != current {
            line.push_str(&format!("\x1b[{wanted}m"));
            current = wanted;
        }
        line.push_str(cell.symbol());
    }
    if current != 0 {
        line.push_str("\x1b[0m");
    }
    line
}

/// The parameter of "Select Graphic Rendition" for the colours of the picture; 0 is the terminal's
/// own.
fn escape_code(colour: Color) -> u8 {
    match colour {
        Color::Green => 32,
        Color::Yellow => 33,
        Color::Cyan => 36,
        Color::DarkGray => 90,
        _ => 0,
    }
}
