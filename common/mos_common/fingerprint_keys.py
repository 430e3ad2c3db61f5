"""The configuration keys that a base model's fingerprint covers, and why it omits the others.

Each key that the libraries know is listed here once: as IN, or with the reason why it does not
change the model's output. A key that is not listed is covered, since a new key of a library may
change the output.
"""

from __future__ import annotations

from collections.abc import Mapping

IN = ""  # the fingerprint covers the key; any other text is the reason why it does not
VERSION = "the version of a library"
PATH = "where the model was loaded from"
CLASS = "the class, which is the same for every base that is loaded"
TRAINING = "used in training only"
RETURNED = "selects the outputs that a call returns"
FORMAT = "the number format that weights are stored in"
LABELS = "labels of a classifier, which an encoder is not"
GENERATION = "settings of text generation, which an encoder does not do"
TOKENIZER = "token ids come from the tokenizer, which the fingerprint covers"
BOOKKEEPING = "notes of the library about the file"
TILING = "the size of tiles, and pictures are not encoded in tiles"
MEMORY = "the size of the pieces that are computed at a time"
SAMPLER = "the choice of sampler, which is not part of the model"

_DIFFUSERS = {
    "_class_name": CLASS,
    "_diffusers_version": VERSION,
    "_name_or_path": PATH,
    "_use_default_values": BOOKKEEPING,
    "_commit_hash": BOOKKEEPING,
}

UNET = dict.fromkeys(
    [
        "act_fn",
        "addition_embed_type",
        "addition_embed_type_num_heads",
        "addition_time_embed_dim",
        "attention_head_dim",
        "attention_type",
        "block_out_channels",
        "center_input_sample",
        "class_embed_type",
        "class_embeddings_concat",
        "conv_in_kernel",
        "conv_out_kernel",
        "cross_attention_dim",
        "cross_attention_norm",
        "down_block_types",
        "downsample_padding",
        "dual_cross_attention",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "flip_sin_to_cos",
        "freq_shift",
        "in_channels",
        "layers_per_block",
        "mid_block_only_cross_attention",
        "mid_block_scale_factor",
        "mid_block_type",
        "norm_eps",
        "norm_num_groups",
        "num_attention_heads",
        "num_class_embeds",
        "only_cross_attention",
        "out_channels",
        "projection_class_embeddings_input_dim",
        "resnet_out_scale_factor",
        "resnet_skip_time_act",
        "resnet_time_scale_shift",
        "reverse_transformer_layers_per_block",
        "sample_size",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "time_embedding_type",
        "timestep_post_act",
        "transformer_layers_per_block",
        "up_block_types",
        "upcast_attention",
        "use_linear_projection",
    ],
    IN,
) | {**_DIFFUSERS, "dropout": TRAINING}

VAE = dict.fromkeys(
    [
        "act_fn",
        "block_out_channels",
        "down_block_types",
        "force_upcast",
        "in_channels",
        "latent_channels",
        "latents_mean",
        "latents_std",
        "layers_per_block",
        "mid_block_add_attention",
        "norm_num_groups",
        "out_channels",
        "scaling_factor",
        "shift_factor",
        "up_block_types",
        "use_post_quant_conv",
        "use_quant_conv",
    ],
    IN,
) | {**_DIFFUSERS, "sample_size": TILING}

TEXT_ENCODER = (
    dict.fromkeys(
        [
            "eos_token_id",
            "hidden_act",
            "hidden_size",
            "intermediate_size",
            "layer_norm_eps",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "projection_dim",
            "vocab_size",
        ],
        IN,
    )
    | dict.fromkeys(["id2label", "label2id", "num_labels", "problem_type", "finetuning_task"], LABELS)
    | dict.fromkeys(["output_attentions", "output_hidden_states", "return_dict"], RETURNED)
    | dict.fromkeys(["dtype", "torch_dtype", "use_bfloat16"], FORMAT)
    | dict.fromkeys(["attention_dropout", "dropout", "initializer_factor", "initializer_range"], TRAINING)
    | dict.fromkeys(["bos_token_id", "pad_token_id", "sep_token_id", "tokenizer_class", "prefix"], TOKENIZER)
    | dict.fromkeys(
        [
            "add_cross_attention",
            "bad_words_ids",
            "begin_suppress_tokens",
            "cross_attention_hidden_size",
            "decoder_start_token_id",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "is_decoder",
            "is_encoder_decoder",
            "length_penalty",
            "max_length",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict_in_generate",
            "suppress_tokens",
            "task_specific_params",
            "temperature",
            "tie_encoder_decoder",
            "tie_word_embeddings",
            "top_k",
            "top_p",
            "typical_p",
        ],
        GENERATION,
    )
    | {
        "_name_or_path": PATH,
        "_commit_hash": BOOKKEEPING,
        "architectures": CLASS,
        "chunk_size_feed_forward": MEMORY,
        "model_type": CLASS,
        "transformers_version": VERSION,
    }
)

# The schedule is covered as numbers (`noise_schedule` in fingerprint.py), which these keys
# determine. Every other key of a scheduler belongs to the sampler: two people who use PNDM and
# Euler on the same model have the same base.
SCHEDULER = dict.fromkeys(
    [
        "beta_end",
        "beta_schedule",
        "beta_start",
        "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr",
        "trained_betas",
    ],
    IN,
) | {"_class_name": SAMPLER, "_diffusers_version": VERSION, "_name_or_path": PATH}

KEYS: Mapping[str, Mapping[str, str]] = {
    "unet": UNET,
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER,
}


def covered(part: str, key: str) -> bool:
    """Return whether the fingerprint covers a key of the UNet, the VAE or a text encoder."""
    return KEYS[part].get(key, IN) == IN
