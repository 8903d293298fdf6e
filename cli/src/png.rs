//! Rendering of an SVG as a PNG, with the fonts of the system.

use anyhow::{Context, ensure};
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{
        Options, Tree,
        fontdb::{Database, Family, Query},
    },
};
use std::sync::Arc;

/// Pixels per unit of the drawing; 2 is sharp on high-density screens.
const SCALE: f32 = 2.0;

/// The bytes of a `.png` file.
///
/// # Errors
/// There is no font to write with, or the text is not an SVG.
pub fn render_svg(svg: &str) -> anyhow::Result<Vec<u8>> {
    let mut fonts = Database::new();
    fonts.load_system_fonts();
    with_fonts(svg, fonts)
}

fn with_fonts(svg: &str, mut fonts: Database) -> anyhow::Result<Vec<u8>> {
    let sans_serif = Query { families: &[Family::SansSerif], ..Query::default() };
    if fonts.query(&sans_serif).is_none() {
        let names = fonts.faces().filter_map(|face| Some(face.families.first()?.0.clone()));
        // The shortest name among the sans-serif fonts is the plain one. Without any, the shortest
        // name of all fonts will do.
        let family = names.min_by_key(|name| (!name.contains("Sans"), name.len(), name.clone()));
        fonts.set_sans_serif_family(family.unwrap_or_default());
    }
    ensure!(
        fonts.query(&sans_serif).is_some(),
        "this machine has no font to write a chart's text with\nhint: install one (Debian: fonts-dejavu-core), or write an .svg"
    );
    let options = Options { fontdb: Arc::new(fonts), ..Options::default() };
    let tree = Tree::from_str(svg, &options).context("a chart is not an SVG that can be drawn")?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("a chart without a size")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("a chart that is too large for a picture")?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVG: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"20\" font-family=\"system-ui, sans-serif\">\
        <style>.paper { fill: #ffffff; } rect[stroke=\"#000000\"] { stroke: #ff0000; }</style>\
        <rect class=\"paper\" width=\"40\" height=\"20\"/><rect x=\"30\" y=\"5\" width=\"5\" height=\"5\" stroke=\"#000000\"/>\
        <text x=\"2\" y=\"16\" font-size=\"16\">H</text></svg>";

    fn pixels(svg: &str) -> Option<Pixmap> {
        let mut fonts = Database::new();
        fonts.load_system_fonts();
        (!fonts.is_empty()).then(|| Pixmap::decode_png(&with_fonts(svg, fonts).unwrap()).unwrap())
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "says that it was skipped")]
    fn a_picture_has_the_shapes_colours_and_letters() {
        let Some(drawn) = pixels(SVG) else { return eprintln!("skipped: needs a font") };
        assert_eq!((drawn.width(), drawn.height()), (80, 40));
        let at = |x, y| drawn.pixel(x, y).map(|p| [p.red(), p.green(), p.blue(), p.alpha()]).unwrap();
        assert_eq!(at(79, 0), [255, 255, 255, 255]);
        assert_eq!(at(60, 14), [255, 0, 0, 255]);
        let is_dark = |(x, y)| at(x, y)[..3].iter().all(|part| *part < 100);
        let dark = (0..40).flat_map(|y| (0..40).map(move |x| (x, y))).filter(|at| is_dark(*at)).count();
        assert!(dark > 60, "{dark} dark pixels in an H of 32 pixels");
    }

    #[test]
    fn missing_fonts_are_an_error_with_a_hint() {
        let message = with_fonts(SVG, Database::new()).unwrap_err().to_string();
        assert!(message.contains("no font") && message.contains("\nhint: "), "{message}");
    }
}
