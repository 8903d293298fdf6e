//! Bounds of a template, which is a program of somebody else: time and memory grow with what it is
//! given, whatever it does.
//!
//! Fuel, of which an instruction costs one and 64 bytes of new text cost one (`minijinja`), bounds
//! texts. It does not see lists in lists: `[x, x]` forty times over is a value of a terabyte when
//! it is printed, and a list that is put into itself a hundred thousand times ends the stack when
//! it is dropped. So a template runs with further instructions, which look at each list and map
//! that it makes, and refuse one that is nested too deeply or would be too long as text, and at
//! what it compares. A namespace holds texts, numbers, lists and maps, and no other namespace.

use std::collections::HashSet;

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, escape_formatter, filters,
    machinery::{self, Instruction, Instructions, Token},
    syntax::SyntaxConfig,
    value::{ObjectRepr, Rest},
};
use serde_json::Value as Json;

/// Fuel of a template without messages; a long template takes some thousands for each message.
const LEAST_FUEL: u64 = 250_000;
/// Further fuel for each byte of what a template is given.
const FUEL_PER_BYTE: u64 = 4;
/// Bytes that a list or map may have for each unit of fuel.
const BYTES_PER_FUEL: u64 = 4;
/// Values that are looked at for a unit of fuel.
const VALUES_PER_FUEL: u64 = 4;
/// Bytes that a value counts beside its text.
const BYTES_PER_VALUE: u64 = 32;
/// Lists in lists; JSON has 128 at most.
const MOST_LEVELS: usize = 256;
/// Digits of a width in a text that `format` fills in.
const MOST_DIGITS: usize = 3;

// Names that no template can write.
const MADE: &str = "made value";
const READ: &str = "read value";
const STORED: &str = "stored value";

/// Filters that compare what they are given, whose comparisons cost no fuel.
const COMPARING: [(&str, &str); 10] = [
    ("sort", "plain sort"),
    ("unique", "plain unique"),
    ("min", "plain min"),
    ("max", "plain max"),
    ("groupby", "plain groupby"),
    ("dictsort", "plain dictsort"),
    ("select", "plain select"),
    ("reject", "plain reject"),
    ("selectattr", "plain selectattr"),
    ("rejectattr", "plain rejectattr"),
];

/// Fuel for a template that is given `context`.
pub(super) fn fuel<'a>(context: impl Iterator<Item = &'a Json>) -> u64 {
    LEAST_FUEL + FUEL_PER_BYTE * context.map(json_bytes).sum::<u64>()
}

fn json_bytes(value: &Json) -> u64 {
    BYTES_PER_VALUE
        + match value {
            Json::String(text) => text.len() as u64,
            Json::Array(items) => items.iter().map(json_bytes).sum(),
            Json::Object(map) => {
                map.iter().map(|(key, value)| BYTES_PER_VALUE + key.len() as u64 + json_bytes(value)).sum()
            }
            _ => 0,
        }
}

/// Adds what the further instructions call, and filters and methods that count what they do.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_formatter(print);
    environment.add_function(MADE, made);
    environment.add_function(READ, |state: &State, value: Value| checked(state, value, Place::Read));
    environment.add_function(STORED, |state: &State, value: Value| checked(state, value, Place::Within));
    environment.add_filter("plain sort", filters::sort);
    environment.add_filter("plain unique", filters::unique);
    environment.add_filter("plain min", filters::min);
    environment.add_filter("plain max", filters::max);
    environment.add_filter("plain groupby", filters::groupby);
    environment.add_filter("plain dictsort", filters::dictsort);
    environment.add_filter("plain select", filters::select);
    environment.add_filter("plain reject", filters::reject);
    environment.add_filter("plain selectattr", filters::selectattr);
    environment.add_filter("plain rejectattr", filters::rejectattr);
    for (name, plain) in COMPARING {
        environment.add_filter(name, move |state: &mut State, values: Rest<Value>| {
            for value in values.iter() {
                checked(state, value.clone(), Place::Read)?;
            }
            state.apply_filter(plain, &values)
        });
    }
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        if method == "format" && value.as_str().is_some_and(is_wide) {
            return Err(refusal(format!("`format` fills in with widths of {MOST_DIGITS} digits at most")));
        }
        for value in arguments.iter().chain([value]) {
            checked(state, value.clone(), Place::Read)?;
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
    });
}

/// Refuses an expression that writes a list and multiplies: where all of it is constant it is
/// computed when the template is read, without fuel.
pub(super) fn check(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut lists, mut products, mut after_value) = (false, false, false);
    for token in machinery::tokenize(source, false, syntax.clone()) {
        let (token, _) = token?;
        match token {
            Token::VariableStart | Token::BlockStart => (lists, products) = (false, false),
            Token::BracketOpen => lists |= !after_value,
            Token::Mul => products = true,
            _ => {}
        }
        if lists && products {
            return Err(refusal("an expression with a list multiplies: `*` repeats texts only".to_owned()));
        }
        use Token::{BraceClose, BracketClose, Ident, ParenClose, Str, String};
        after_value = match token {
            Ident(word) => !["in", "if", "else", "and", "or", "not", "is"].contains(&word),
            other => matches!(other, Str(_) | String(_) | BracketClose | ParenClose | BraceClose),
        };
    }
    Ok(())
}

/// Whether a text for `format` has a width of too many digits, or one that is an argument.
fn is_wide(text: &str) -> bool {
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    let within = text.split('{').skip(1).any(|field| field.contains(':') && !field.contains('}'));
    within || digits.is_some_and(|digits| digits > MOST_DIGITS)
}

/// Where a value is, that is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Result of an expression: a namespace or a macro may be one.
    Made,
    /// Printed or compared: a macro may be.
    Read,
    /// In a list, a map or a namespace.
    Within,
}

/// A value that was made, as one that can be read as often as one likes: what was to be computed
/// when it is read, such as a part of a list, is a list.
fn made(state: &State, value: Value) -> Result<Value, Error> {
    let is_list = value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some();
    let lazy = value.as_object().is_some_and(|object| matches!(object.repr(), ObjectRepr::Seq | ObjectRepr::Iterable));
    if is_list || !lazy {
        return checked(state, value, Place::Made);
    }
    let (most, mut items) = (most_bytes(state) / BYTES_PER_VALUE, Vec::new());
    for item in value.try_iter()? {
        if items.len() as u64 >= most {
            return Err(refusal(TOO_LARGE.to_owned()));
        }
        items.push(item);
    }
    checked(state, Value::from(items), Place::Made)
}

/// The value, unless it is one that is not to be at `place`. It costs fuel by its size.
fn checked(state: &State, value: Value, place: Place) -> Result<Value, Error> {
    if value.as_object().is_some() {
        let mut walk = Walk { bytes: most_bytes(state), values: 0 };
        let result = walk.value(&value, place, 0);
        state.consume_fuel(walk.values / VALUES_PER_FUEL)?;
        result?;
    }
    Ok(value)
}

fn most_bytes(state: &State) -> u64 {
    let (used, left) = state.fuel_levels().unwrap_or_default();
    (used + left) * BYTES_PER_FUEL
}

/// A walk through a value and all that is in it, as often as it is there.
struct Walk {
    /// Bytes that are left.
    bytes: u64,
    /// Values that were seen.
    values: u64,
}

impl Walk {
    fn value(&mut self, value: &Value, place: Place, level: usize) -> Result<(), Error> {
        self.values += 1;
        self.count(BYTES_PER_VALUE + value.as_str().map_or(0, |text| text.len() as u64))?;
        let Some(object) = value.as_object() else { return Ok(()) };
        if level > MOST_LEVELS {
            return Err(refusal(format!("a value of the template has more than {MOST_LEVELS} levels")));
        }
        if place != Place::Made && object.type_name().ends_with("::Namespace") {
            return Err(refusal("a namespace stands where only its attributes may".to_owned()));
        }
        match object.repr() {
            ObjectRepr::Plain if place == Place::Within => {
                Err(refusal("what is no value, such as a loop, is put into a list, a map or a namespace".to_owned()))
            }
            ObjectRepr::Map => object.try_iter_pairs().into_iter().flatten().try_for_each(|(key, value)| {
                self.value(&key, Place::Within, level + 1)?;
                self.value(&value, Place::Within, level + 1)
            }),
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                // A long list of one value is refused before its values are looked at.
                let least = object.enumerator_len().unwrap_or(0) as u64 * BYTES_PER_VALUE;
                if least > self.bytes {
                    return Err(refusal(TOO_LARGE.to_owned()));
                }
                object.try_iter().into_iter().flatten().try_for_each(|item| self.value(&item, Place::Within, level + 1))
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| refusal(TOO_LARGE.to_owned()))?;
        Ok(())
    }
}

const TOO_LARGE: &str = "a list or map of the template is too large";

fn refusal(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Prints a value, as `minijinja` does.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    checked(state, value.clone(), Place::Read)?;
    escape_formatter(out, state, value)
}

/// The instructions of a template with further ones.
pub(super) fn bounded<'a>(plain: &Instructions<'a>) -> Instructions<'a> {
    let all: Vec<Instruction<'a>> = (0..).map_while(|at| plain.get(at).cloned()).collect();
    let targets: HashSet<u32> = all.iter().filter_map(|it| target(&mut it.clone()).copied()).collect();
    let call = |name| Instruction::CallFunction(name, Some(1));
    let (mut further, mut places) = (Vec::with_capacity(2 * all.len()), Vec::with_capacity(all.len() + 1));
    for (at, instruction) in all.iter().enumerate() {
        places.push(further.len() as u32);
        // Where nothing jumps to, what was loaded before is what stands on top.
        let on_plain = at > 0 && is_plain(&all[at - 1]) && !targets.contains(&(at as u32));
        let (swap, read) = (Instruction::Swap, call(READ));
        match instruction {
            Instruction::SetAttr(_) => further.extend([swap.clone(), call(STORED), swap]),
            Instruction::StringConcat if on_plain => further.extend([swap.clone(), read, swap]),
            _ if on_plain => {}
            Instruction::ApplyFilter(_, Some(1), _) => further.push(read),
            both if reads_both(both) => further.extend([read.clone(), swap.clone(), read, swap]),
            _ => {}
        }
        further.push(instruction.clone());
        if makes_value(instruction) {
            further.push(call(MADE));
        }
    }
    places.push(further.len() as u32);
    let mut bounded = Instructions::new(plain.name(), plain.source());
    for mut instruction in further {
        if let Some(target) = target(&mut instruction) {
            *target = places.get(*target as usize).copied().unwrap_or(u32::MAX);
        }
        bounded.add(instruction);
    }
    bounded
}

/// The place that an instruction jumps to.
fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    use Instruction::{BuildMacro, Iterate, Jump, JumpIfFalse, JumpIfFalseOrPop, JumpIfTrueOrPop};
    match instruction {
        Iterate(target) | Jump(target) | JumpIfFalse(target) | JumpIfFalseOrPop(target) => Some(target),
        JumpIfTrueOrPop(target) | BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// True for an instruction that loads a text or a number.
fn is_plain(instruction: &Instruction<'_>) -> bool {
    matches!(instruction, Instruction::LoadConst(value) if value.as_object().is_none())
}

/// True for what reads two values and all that is in them.
fn reads_both(instruction: &Instruction<'_>) -> bool {
    use Instruction::{CompareAndPreserve, Eq, Gt, Gte, In, Lt, Lte, Ne, StringConcat};
    matches!(instruction, Eq | Ne | Gt | Gte | Lt | Lte | In | CompareAndPreserve(_) | StringConcat)
}

/// True for what may make a list or a map.
fn makes_value(instruction: &Instruction<'_>) -> bool {
    use Instruction::{Add, ApplyFilter, BuildList, BuildMap, BuildTuple, CallFunction, CallMethod, CallObject};
    use Instruction::{Mul, Slice};
    match instruction {
        Add | Mul | Slice | BuildList(_) | BuildMap(_) | BuildTuple(_) => true,
        CallFunction(..) | CallMethod(..) | CallObject(_) => true,
        ApplyFilter(name, ..) => !["trim", "string", "tojson", "length", "upper", "lower"].contains(name),
        _ => false,
    }
}
