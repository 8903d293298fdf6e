//! Colours of pages and charts, for light and dark screens.
//!
//! Charts are drawn in placeholder colours, one for each role; style rules replace these with the
//! variables of `palette.css`.

use plotters::style::RGBColor;
use std::fmt::Write;

/// CSS variables of the colours, for light and dark screens.
pub const CSS: &str = include_str!("palette.css");
/// Colour of the text and of a chart's frame.
pub const INK: RGBColor = RGBColor(1, 1, 1);
/// Colour of grid lines and axes.
pub const GRID: RGBColor = RGBColor(2, 2, 2);
/// Number of colours of series; further series start again with the first.
pub const NUM_COLOURS: usize = 8;

/// Placeholder colour of series `index`.
pub fn series(index: usize) -> RGBColor {
    RGBColor(3, 3, 10 + (index % NUM_COLOURS) as u8)
}

/// Name of the CSS variable with the colour of series `index`.
pub fn variable(index: usize) -> String {
    format!("--series{}", index % NUM_COLOURS)
}

/// CSS rules that give the placeholders their colours.
pub fn rules() -> String {
    let names = [(INK, "--ink".to_owned()), (GRID, "--line".to_owned())];
    let series = (0..NUM_COLOURS).map(|index| (series(index), variable(index)));
    names.into_iter().chain(series).fold(String::new(), |mut css, (RGBColor(r, g, b), name)| {
        let placeholder = format!("#{r:02X}{g:02X}{b:02X}");
        for property in ["fill", "stroke"] {
            let _ = writeln!(css, "svg [{property}=\"{placeholder}\"] {{ {property}: var({name}); }}");
        }
        css
    })
}
