//! Line plots as SVG.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// Colours of the lines, which people with colour blindness can distinguish as well.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// An axis of a plot.
pub(crate) struct Axis {
    pub(crate) name: &'static str,
    /// Positions and texts of the marks of a horizontal axis; if empty, and on vertical axes, round numbers are marked.
    pub(crate) marks: Vec<(f64, String)>,
    /// Whether the scale is logarithmic.
    pub(crate) logarithmic: bool,
}

/// A line of a plot.
pub(crate) struct PlotLine {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Returns the colour of the line with this number.
pub(crate) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Maps values (`value_min..=value_max`) to coordinates (`start..=end`).
struct PlotScale {
    value_min: f64,
    value_max: f64,
    start: f64,
    end: f64,
    logarithmic: bool,
}

impl PlotScale {
    /// Returns the coordinate of a value.
    fn project(&self, value: f64) -> f64 {
        let share = match self.logarithmic {
            true => {
                (value.max(self.value_min) / self.value_min).ln()
                    / (self.value_max / self.value_min).ln()
            }
            false => (value - self.value_min) / (self.value_max - self.value_min),
        };
        self.start + share * (self.end - self.start)
    }

    /// Returns round values within the scale, with their labels.
    fn marks(&self) -> Vec<(f64, String)> {
        if self.logarithmic {
            let mut marks = Vec::new();
            let mut at = 10_f64.powf(self.value_min.log10().ceil());
            while at <= self.value_max * 1.001 {
                marks.push((at, with_unit_prefix(at)));
                at *= 10.0;
            }
            return marks;
        }
        let rough = (self.value_max - self.value_min) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.value_min / step).ceil() as i64;
        let last = (self.value_max / step).floor() as i64;
        (first..=last).map(|at| (at as f64 * step, with_unit_prefix(at as f64 * step))).collect()
    }
}

/// Returns a number with a unit prefix.
fn with_unit_prefix(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{}", (value * 1000.0).round() / 1000.0),
    }
}

/// Returns the SVG of a plot, or a note if there are no points.
pub(crate) fn draw(x: &Axis, y: &Axis, lines: &[PlotLine]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let span = |of: fn(&(f64, f64)) -> f64, axis: &Axis| {
        let low = points().map(of).fold(f64::INFINITY, f64::min);
        let high = points().map(of).fold(f64::NEG_INFINITY, f64::max);
        let low = if axis.logarithmic { low.max(1e-3) } else { low.min(0.0) };
        (low, if high > low { high } else { low + 1.0 })
    };
    if points().next().is_none() {
        return "<p>No answers.</p>".to_owned();
    }
    let ((x_from, x_to), (y_from, y_to)) = (span(|point| point.0, x), span(|point| point.1, y));
    let scale = |(value_min, value_max), (start, end), axis: &Axis| PlotScale {
        value_min,
        value_max,
        start,
        end,
        logarithmic: axis.logarithmic,
    };
    let x_scale = scale((x_from, x_to), (LEFT, WIDTH - RIGHT), x);
    let (start, end) = (HEIGHT - BOTTOM, TOP);
    let y_scale = scale((y_from, y_to * 1.05), (start, end), y);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    let marks = if x.marks.is_empty() { x_scale.marks() } else { x.marks.clone() };
    for (value, text) in marks.into_iter().filter(|(value, _)| (x_from..=x_to).contains(value)) {
        let at = x_scale.project(value);
        _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{start}\" x2=\"{at:.1}\" y2=\"{end}\" class=\"grid\"/>"
        );
        let below = start + 16.0;
        _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{text}</text>");
    }
    for (value, text) in y_scale.marks() {
        let (at, right) = (y_scale.project(value), WIDTH - RIGHT);
        _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" class=\"grid\"/>"
        );
        let (beside, baseline) = (LEFT - 6.0, at + 4.0);
        _ = writeln!(
            svg,
            "<text x=\"{beside}\" y=\"{baseline:.1}\" text-anchor=\"end\">{text}</text>"
        );
    }
    for (number, line) in lines.iter().enumerate() {
        let project =
            |(x, y): &(f64, f64)| format!("{:.1},{:.1}", x_scale.project(*x), y_scale.project(*y));
        let path: Vec<_> = line.points.iter().map(project).collect();
        let (path, colour, name) = (path.join(" "), colour(number), escape(&line.name));
        _ = writeln!(
            svg,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\">\
             <title>{name}</title></polyline>"
        );
    }
    let (middle, bottom) = (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 4.0);
    _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text>",
        x.name
    );
    let half = f64::midpoint(start, end);
    _ = writeln!(
        svg,
        "<text transform=\"translate(12,{half}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
        y.name
    );
    svg
}

/// Escapes a text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_marks_have_the_right_coordinates() {
        let linear = PlotScale {
            value_min: 0.0,
            value_max: 10.0,
            start: 100.0,
            end: 200.0,
            logarithmic: false,
        };
        assert_eq!(linear.project(5.0), 150.0);
        assert_eq!(linear.marks().len(), 6);
        let logarithmic = PlotScale {
            value_min: 1.0,
            value_max: 100.0,
            start: 0.0,
            end: 100.0,
            logarithmic: true,
        };
        assert!((logarithmic.project(10.0) - 50.0).abs() < 1e-9);
        let texts: Vec<_> = logarithmic.marks().into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["1", "10", "100"]);
        let axis = |name| Axis { name, marks: Vec::new(), logarithmic: false };
        let line = PlotLine { name: "<a>".to_owned(), points: vec![(0.0, 1.0), (1.0, 1.0)] };
        let svg = draw(&axis("x"), &axis("y"), &[line]);
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("NaN"), "{svg}");
        assert!(draw(&axis("x"), &axis("y"), &[]).contains("No answers"));
    }
}
