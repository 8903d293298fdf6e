//! Keys of a `config.json` that are not a family's own, sorted into those that every family reads
//! and those that change no number of the forward pass. Any other key is named in a warning.

/// Keys that are read for every family.
pub(super) const READ: [&str; 13] = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "quantization_config",
    "recursion",
    "rope_parameters",
    "rope_scaling",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];

/// Keys that change nothing here: notes of the tools that write the file, settings of training, of
/// generation and of classification, and switches of `transformers` for speed and memory. `stack`
/// is a note of `retie export --to hf` for its Python code, which follows from the other keys.
const HARMLESS: [&str; 99] = [
    // Notes.
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "is_llama_config",
    "name_or_path",
    "stack",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_mamba_kernels",
    // What `layer_types` was made from, and what some families' files have of others.
    "_sliding_window_pattern",
    "max_window_layers",
    "type_vocab_size",
    "use_mrope",
    // Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_range",
    "neftune_noise_alpha",
    "resid_pdrop",
    "rope_interleaved",
    // Speed and memory.
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "is_decoder",
    "low_cpu_mem_usage",
    "pretraining_tp",
    "torchscript",
    "use_cache",
    "use_flash_attn",
    "use_return_dict",
    // Tokens.
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "unk_token_id",
    // Generation.
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Outputs and classification.
    "finetuning_task",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    // The base class, before version 5 too: for models with an encoder, of TensorFlow, and others.
    "add_cross_attention",
    "cross_attention_hidden_size",
    "is_encoder_decoder",
    "prefix",
    "pruned_heads",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "use_bfloat16",
];

/// True if `key` is read for every family or changes nothing.
pub(super) fn is_common(key: &str) -> bool {
    READ.contains(&key) || HARMLESS.contains(&key)
}

/// True if `key` changes nothing.
#[cfg(test)]
pub(super) fn is_harmless(key: &str) -> bool {
    HARMLESS.contains(&key)
}
