//! Snapshots of the messages of document errors.

use super::*;
use insta::assert_snapshot;
use serde::Deserialize;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    name: String,
    num_layers: u32,
    #[serde(default)]
    rate: f64,
    #[serde(default)]
    tied: bool,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    inner: Option<Inner>,
    #[serde(default)]
    shape: Shape,
    #[serde(default)]
    small: u8,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner {
    width: i64,
    height: i64,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shape {
    #[default]
    Flat,
    Round(Inner),
}

impl Document for Sample {
    fn check(&self, checks: &mut Checks) {
        checks.require(self.rate < 1.0, "rate", self.rate, "a number below 1");
        if let Some(inner) = &self.inner
            && inner.width > inner.height
        {
            let message = format!("width `{}` is above height `{}`", inner.width, inner.height);
            checks.problem("inner.width", message).also(&["inner.height"]);
        }
    }
}

fn sample(text: &str, overrides: &[&str]) -> Result<Sample, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    parse(text, Path::new("a/b.yaml"), &overrides)
}

fn error(text: &str, overrides: &[&str]) -> String {
    sample(text, overrides).unwrap_err().to_string()
}

const GOOD: &str = "name: x\nnum_layers: 3\n";

#[test]
fn unknown_keys_wrong_types_missing_keys_and_impossible_values_are_reported_together() {
    let text = "\
# a comment
nam: x
rate: 1.5
tied: yes
tags:
  - ok
  - 5
inner:
  width: wide
  colour: red
shape: {rond: {}}
";
    assert_snapshot!(error(text, &[]), @r#"
    `a/b.yaml` has 9 problems
    a/b.yaml:1:1: key `num_layers` is missing
    a/b.yaml:2:1: unknown key `nam`
      hint: did you mean `name`?
    a/b.yaml:3:7: `rate` is `1.5`, expected a number below 1
    a/b.yaml:4:7: `tied` is `yes`, expected `true` or `false`
    a/b.yaml:7:5: `tags.1` is `5`, expected a string
      hint: write it in quotes, `"5"`
    a/b.yaml:8:1: key `inner.height` is missing
    a/b.yaml:9:10: `inner.width` is `wide`, expected an integer
    a/b.yaml:10:3: unknown key `inner.colour`
      hint: the keys here are `width`, `height`
    a/b.yaml:11:9: `shape` is `rond`, expected one of `flat`, `round`
      hint: did you mean `round`?
    "#);
}

#[test]
fn a_finding_that_rests_on_a_hole_is_left_out() {
    assert_snapshot!(error("name: x\nnum_layers: 3\ninner: {width: 5, height: tall}\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:3:27: `inner.height` is `tall`, expected an integer
    ");
}

#[test]
fn quotes_decide_between_text_and_numbers() {
    assert_snapshot!(error("name: 5\nnum_layers: \"3\"\nrate: '3e-3'\n", &[]), @r#"
    `a/b.yaml` has 3 problems
    a/b.yaml:1:7: `name` is `5`, expected a string
      hint: write it in quotes, `"5"`
    a/b.yaml:2:13: `num_layers` is the string `3`, expected an integer
      hint: write it without quotes
    a/b.yaml:3:7: `rate` is the string `3e-3`, expected a number
      hint: write it without quotes
    "#);
    assert_eq!(sample("name: '5'\nnum_layers: 3\nrate: 3e-3", &[]).unwrap().rate, 0.003);
}

#[test]
fn integers_keep_to_their_range() {
    assert_snapshot!(error("name: x\nnum_layers: -1\nsmall: 300\n", &[]), @"
    `a/b.yaml` has 2 problems
    a/b.yaml:2:13: `num_layers` is `-1`, expected an integer from 0 to 4294967295
    a/b.yaml:3:8: `small` is `300`, expected an integer from 0 to 255
    ");
}

#[test]
fn a_choice_is_one_name() {
    assert_snapshot!(error(&format!("{GOOD}shape: round\n"), &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:3:8: `shape` is `round`, expected `round: { … }` with its settings
    ");
    assert_snapshot!(error(&format!("{GOOD}shape: [flat]\n"), &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:3:1: `shape` is a list, expected one of `flat`, `round`
    ");
    assert_snapshot!(error(&format!("{GOOD}shape: {{flat: , round: {{width: 1, height: 2}}}}\n"), &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:3:1: `shape` is a mapping, expected exactly one of `flat`, `round`
    ");
    let round = sample(&format!("{GOOD}shape:\n  round: {{width: 1, height: 2}}\n"), &[]).unwrap();
    assert_eq!(round.shape, Shape::Round(Inner { width: 1, height: 2 }));
}

#[test]
fn a_key_given_twice_is_reported() {
    assert_snapshot!(error("name: x\nnum_layers: 3\nname: y\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:3:1: key `name` is given twice
    ");
}

#[test]
fn a_text_that_is_not_yaml_says_where() {
    assert_snapshot!(error("name: [x\nnum_layers: 3\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:2:11: not valid YAML: illegal placement of ':' indicator
    ");
    assert_snapshot!(error("name: x\n\tnum_layers: 3\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:1:7: not valid YAML: while scanning a plain scalar, found a tab
    ");
    assert_snapshot!(error("", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:1:1: the document is empty, expected a mapping
    ");
    assert_snapshot!(error("- a\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:1:1: the document is a list, expected a mapping
    ");
    assert_snapshot!(error("name: x\n---\nname: y\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:2:1: not valid YAML: a second document begins here, expected one
    ");
    assert_snapshot!(error("name: !path x\nnum_layers: 3\n", &[]), @"
    `a/b.yaml` has 1 problem
    a/b.yaml:1:13: not valid YAML: a tag (`!…`), which a configuration cannot hold
    ");
}

#[test]
fn overrides_reach_lists_and_nested_keys() {
    let text = "name: x\nnum_layers: 3\ntags: [a, b]\nshape:\n  round: {width: 1, height: 2}\n";
    let set =
        ["num_layers=4", "tags.1=c", "inner.width=0", "inner.height=1", "shape.width=-7", "rate=1e-5", "name=a=b"];
    let sample = sample(text, &set).unwrap();
    assert_eq!(sample.num_layers, 4);
    assert_eq!(sample.tags, ["a", "c"]);
    assert_eq!(sample.inner, Some(Inner { width: 0, height: 1 }));
    assert_eq!(sample.shape, Shape::Round(Inner { width: -7, height: 2 }));
    assert_eq!((sample.rate, sample.name.as_str()), (1e-5, "a=b"));
}

#[test]
fn errors_of_overrides_name_the_flag() {
    let text = "name: x\nnum_layers: three\ntags: [a]\n";
    let set = ["nme=y", "rate=2", "tags.3=x", "tied=maybe", "tied", "name.first=x", "inner={", "a..b=1"];
    assert_snapshot!(error(text, &set), @"
    `a/b.yaml` has 9 problems
    a/b.yaml:2:13: `num_layers` is `three`, expected an integer
    --set nme=y: unknown key `nme`
      hint: did you mean `name`?
    --set rate=2: `rate` is `2`, expected a number below 1
    --set tags.3=x: `tags` is a list of 1, `3` is not an index of it
    --set tied=maybe: `tied` is `maybe`, expected `true` or `false`
    --set tied: expected `KEY=VALUE`
    --set name.first=x: `name` is `x` and has no key `first`
    --set inner={: not valid YAML: unclosed bracket '{'
    --set a..b=1: `a..b` is not a key path, expected names with dots between
    ");
}

#[test]
fn an_override_can_take_a_key_away_and_mend_a_bad_value() {
    assert_eq!(sample("name: x\nnum_layers: three\ninner: 5\n", &["num_layers=3", "inner=null"]).unwrap().inner, None);
}

#[test]
fn anchors_are_copied() {
    let text = "name: x\nnum_layers: 3\ninner: &i {width: 1, height: 2}\nshape: {round: *i}\n";
    assert_eq!(sample(text, &[]).unwrap().shape, Shape::Round(Inner { width: 1, height: 2 }));
}

#[test]
fn a_file_that_does_not_exist_is_named() {
    let error = load::<Sample>(Path::new("no/such.yaml"), &[]).unwrap_err();
    assert!(error.to_string().contains("no/such.yaml"), "{error}");
}
