//! Chat templates: messages → the text of a prompt.
//!
//! A template is Jinja, in `chat_template.jinja` or under `chat_template` in
//! `tokenizer_config.json`, and is rendered as `apply_chat_template` of `transformers` does
//! (<https://huggingface.co/docs/transformers/chat_templating>): `trim_blocks`, `lstrip_blocks`,
//! the methods of Python's strings and dictionaries, `tojson`, `raise_exception`, `strftime_now`
//! (in UTC), `{% generation %}`, and the special tokens by their names.

mod answers;
mod bounds;
mod python;

use std::path::{Path, PathBuf};

use minijinja::{Environment, Error, ErrorKind, machinery, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value};

use crate::{error::DataError, guarded::guarded};

/// Files of a model's folder that a template and its special tokens come from.
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";

/// Name of the template in its environment.
const NAME: &str = "chat";
/// Name of the same template with marks around its answers.
const MARKED: &str = "marked";

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: PathBuf,
    source: String,
    special_tokens: Map<String, Value>,
    end_tokens: Vec<u32>,
    /// Whether it has `{% generation %}` blocks.
    marks_answers: bool,
}

impl ChatTemplate {
    /// From the small files of a model, by name; `None` if it has no template. `place` is the
    /// model's folder or file, for errors.
    ///
    /// # Errors
    /// A configuration is not JSON, or the template is not Jinja.
    pub fn from_model_files(files: &[(String, Vec<u8>)], place: &Path) -> Result<Option<Self>, DataError> {
        let file = |name: &str| files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.as_slice());
        let path = |name: &str| if place.is_file() { place.to_owned() } else { place.join(name) };
        let json = |name: &str| {
            let parse = |bytes| serde_json::from_slice::<Value>(bytes);
            let wrong = |source| DataError::TokenizerConfig { path: path(name), source };
            Ok::<_, DataError>(file(name).map(parse).transpose().map_err(wrong)?.unwrap_or_default())
        };
        let (config, special) = (json(TOKENIZER_CONFIG)?, json(SPECIAL_TOKENS)?);
        let (origin, source) = match file(TEMPLATE) {
            Some(bytes) => (path(TEMPLATE), Some(String::from_utf8_lossy(bytes).into_owned())),
            None => (path(TOKENIZER_CONFIG), configured(&config)),
        };
        let Some(source) = source else { return Ok(None) };
        let special_tokens = special_tokens(&special).chain(special_tokens(&config)).collect();
        let end_tokens = token_ids(&json(GENERATION)?["eos_token_id"]);
        Ok(Some(Self { end_tokens, ..Self::new(source, special_tokens, origin)? }))
    }

    /// A template of `source`; `origin` names it in errors.
    pub(crate) fn new(source: String, special_tokens: Map<String, Value>, origin: PathBuf) -> Result<Self, DataError> {
        let wrong = |source| DataError::ChatTemplate { path: origin.clone(), source };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?;
        bounds::check(&source, &syntax).map_err(wrong)?;
        environment.set_syntax(syntax);
        bounds::add_to(&mut environment);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter(answers::FILTER, answers::mark);
        let always = with_blocks(&source, "if true", "endif");
        let marked = with_blocks(&source, &format!("filter {}", answers::FILTER), "endfilter");
        let marks_answers = always != source;
        environment.add_template_owned(NAME, always).map_err(wrong)?;
        environment.add_template_owned(MARKED, marked).map_err(wrong)?;
        Ok(Self { environment, origin, source, special_tokens, end_tokens: Vec::new(), marks_answers })
    }

    /// Text of the Jinja template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Special tokens by their names in a template, such as `bos_token`.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// Tokens that end an answer, beside the EOS tokens of the model: those of
    /// `generation_config.json`, where models for chats have the token that ends a message.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The prompt of `messages`, an array of objects with `role` and `content`. `variables` are
    /// further variables of the template; with `add_generation_prompt: true` the prompt ends where
    /// the answer begins. The text has the BOS token already if the template writes it:
    /// [`Tokenizer::encode`](crate::Tokenizer::encode) it without another.
    ///
    /// # Errors
    /// The template refuses the messages, or fails on them.
    pub fn render(&self, messages: &Value, variables: &Map<String, Value>) -> Result<String, DataError> {
        self.render_as(NAME, messages, variables)
    }

    fn render_as(&self, name: &str, messages: &Value, variables: &Map<String, Value>) -> Result<String, DataError> {
        let mut context = self.special_tokens.clone();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.insert("add_generation_prompt".to_owned(), Value::Bool(false));
        context.extend(variables.clone());
        context.insert("messages".to_owned(), messages.clone());
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(bounds::fuel(context.values())));
        let rendered = guarded(|| evaluate(&environment, name, &context)).and_then(|result| {
            result.map_err(|error| error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
        });
        rendered.map_err(|reason| DataError::ChatMessages { path: self.origin.clone(), reason })
    }
}

/// The text of a template, within the bounds of what it is given.
fn evaluate(environment: &Environment<'_>, name: &str, context: &Map<String, Value>) -> Result<String, Error> {
    let template = environment.get_template(name)?;
    let compiled = machinery::get_compiled_template(&template);
    let instructions = bounds::bounded(&compiled.instructions);
    let context = minijinja::Value::from(Serde(context));
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    let escape = compiled.initial_auto_escape.clone();
    machinery::eval(environment, &instructions, context, &compiled.blocks, &mut output, escape)?;
    Ok(text)
}

/// The template of a `tokenizer_config.json`: a text, or the one that is named `default` in a list.
fn configured(config: &Value) -> Option<String> {
    let template = config.get("chat_template")?;
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str().map(str::to_owned)
    };
    template.as_str().map(str::to_owned).or_else(|| template.as_array().and_then(named))
}

/// Token ids that are one number or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    numbers.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// The special tokens of a configuration, by name.
fn special_tokens(config: &Value) -> impl Iterator<Item = (String, Value)> {
    let keys = config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token"));
    keys.filter_map(|(key, value)| {
        let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((key.clone(), Value::String(content.to_owned())))
    })
}

/// The template with each `{% generation %}` block, which only marks the tokens of answers for
/// training, as a block of another kind.
fn with_blocks(source: &str, begin: &str, end: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        text += before;
        text += "{%";
        let name = after.trim_start_matches(['-', '+']).trim_start();
        let (word, block) = match name {
            _ if name.starts_with("generation") => ("generation", begin),
            _ if name.starts_with("endgeneration") => ("endgeneration", end),
            _ => ("", ""),
        };
        text += &after[..after.len() - name.len()];
        text += block;
        rest = &name[word.len()..];
    }
    text + rest
}

#[cfg(test)]
mod tests;
