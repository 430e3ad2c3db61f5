"""Every key of a base model's configurations: covered by the fingerprint, or why it is not.

Each key that the libraries know is listed here once: as IN, or with the reason why it does not
change what the model computes. A key that is not listed is covered, since a new key of a library
may change the output; a base that has one is refused, unless it is at its default
(`base_configuration.py`, which also limits the values of some of these keys).
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
FROM_TOKENIZER = "token ids come from the tokenizer, which the fingerprint covers"
BOOKKEEPING = "notes of the library about the file"
TILING = "the size of tiles, and pictures are not encoded in tiles"
MEMORY = "the size of the pieces that are computed at a time"
SAMPLER = "the choice of sampler, which is not part of the model"
LOADED = "a part of the model, which is loaded and covered by itself"
FINISHED = "concerns finished pictures, which are left as they are drawn"
PICTURED = "reads pictures given beside the prompt, and there are none"
GUIDANCE = "decides what guidance moves away from, not what the model computes"
BEHAVIOUR = "covered by the vocabulary, merges, special tokens and lengths that it leads to"
UNUSED = "read by no version of CLIP's tokenizer that is supported"


def _each(names: str, why: str) -> dict[str, str]:
    """Return the names, which spaces separate, each with the same reason."""
    return dict.fromkeys(names.split(), why)


_DIFFUSERS = {
    "_class_name": CLASS,
    "_diffusers_version": VERSION,
    "_name_or_path": PATH,
    "_use_default_values": BOOKKEEPING,
    "_commit_hash": BOOKKEEPING,
}

UNET = {
    **_DIFFUSERS,
    **_each(
        """
        act_fn addition_embed_type addition_embed_type_num_heads addition_time_embed_dim
        attention_head_dim attention_type block_out_channels center_input_sample class_embed_type
        class_embeddings_concat conv_in_kernel conv_out_kernel cross_attention_dim
        cross_attention_norm down_block_types downsample_padding dual_cross_attention
        encoder_hid_dim encoder_hid_dim_type flip_sin_to_cos freq_shift in_channels layers_per_block
        mid_block_only_cross_attention mid_block_scale_factor mid_block_type norm_eps
        norm_num_groups num_attention_heads num_class_embeds only_cross_attention out_channels
        projection_class_embeddings_input_dim resnet_out_scale_factor resnet_skip_time_act
        resnet_time_scale_shift reverse_transformer_layers_per_block sample_size time_cond_proj_dim
        time_embedding_act_fn time_embedding_dim time_embedding_type timestep_post_act
        transformer_layers_per_block up_block_types upcast_attention use_linear_projection
        """,
        IN,
    ),
    "dropout": TRAINING,
    # How weights were averaged in training. Like every key that was not listed, these were covered
    # before they were known, and a fingerprint does not change.
    **_each("decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup", IN),
}

VAE = {
    **_DIFFUSERS,
    **_each(
        """
        act_fn block_out_channels down_block_types force_upcast in_channels latent_channels
        latents_mean latents_std layers_per_block mid_block_add_attention norm_num_groups
        out_channels scaling_factor shift_factor up_block_types use_post_quant_conv use_quant_conv
        """,
        IN,
    ),
    "sample_size": TILING,
}

TEXT_ENCODER = {
    **_each(
        """
        eos_token_id hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings
        num_attention_heads num_hidden_layers projection_dim vocab_size
        """,
        IN,
    ),
    **_each("finetuning_task id2label label2id num_labels problem_type", LABELS),
    **_each("output_attentions output_hidden_states return_dict", RETURNED),
    **_each("dtype torch_dtype use_bfloat16", FORMAT),
    **_each("attention_dropout dropout initializer_factor initializer_range", TRAINING),
    # Settings of earlier releases that compute nothing, covered since before they were listed.
    **_each("_attn_implementation_autoset gradient_checkpointing pruned_heads torchscript use_cache", IN),
    **_each("bos_token_id pad_token_id prefix sep_token_id tokenizer_class", FROM_TOKENIZER),
    **_each(
        """
        add_cross_attention bad_words_ids begin_suppress_tokens cross_attention_hidden_size
        decoder_start_token_id diversity_penalty do_sample early_stopping
        encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
        forced_eos_token_id is_decoder is_encoder_decoder length_penalty max_length min_length
        no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
        remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
        task_specific_params temperature tie_encoder_decoder tie_word_embeddings top_k top_p
        typical_p
        """,
        GENERATION,
    ),
    "_name_or_path": PATH,
    "_commit_hash": BOOKKEEPING,
    **_each("architectures model_type", CLASS),
    "chunk_size_feed_forward": MEMORY,
    "transformers_version": VERSION,
}

# The schedule is covered as numbers (`noise_schedule` in fingerprint.py), which these keys
# determine. Every other key of a scheduler belongs to the sampler: two people who use PNDM and
# Euler on the same model have the same base.
SCHEDULER = {
    **_DIFFUSERS,
    **_each(
        """
        beta_end beta_schedule beta_start num_train_timesteps prediction_type rescale_betas_zero_snr
        trained_betas
        """,
        IN,
    ),
    **_each(
        """
        _class_name algorithm_type clip_sample clip_sample_range corrector_order disable_corrector
        dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift interpolation_type
        lambda_min_clipped lower_order_final original_inference_steps predict_epsilon predict_x0
        predictor_order sample_max_value set_alpha_to_one shift_terminal sigma_max sigma_min
        skip_prk_steps solver_order solver_p solver_type steps_offset tau_func thresholding
        time_shift_type timestep_scaling timestep_spacing timestep_type use_beta_sigmas
        use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas
        variance_type
        """,
        SAMPLER,
    ),
}

PIPELINE = {
    **_DIFFUSERS,
    **_each("scheduler text_encoder text_encoder_2 tokenizer tokenizer_2 unet vae", LOADED),
    **_each("add_watermarker feature_extractor requires_safety_checker safety_checker", FINISHED),
    "force_zeros_for_empty_prompt": GUIDANCE,
    **_each("image_encoder requires_aesthetics_score", PICTURED),
}

TOKENIZER = {
    **_each(
        """
        added_tokens_decoder additional_special_tokens bos_token cls_token eos_token
        extra_special_tokens mask_token max_len model_max_length model_specific_special_tokens pad_token
        padding_side sep_token split_special_tokens truncation_side unk_token
        """,
        BEHAVIOUR,
    ),
    **_each("add_prefix_space do_lower_case trim_offsets", UNUSED),
    **_each(
        """
        add_bos_token add_eos_token clean_up_tokenization_spaces errors max_length model_input_names
        pad_to_multiple_of pad_token_type_id padding stride truncation truncation_strategy verbose
        """,
        RETURNED,
    ),
    **_each("_commit_hash backend from_slow is_local legacy local_files_only", BOOKKEEPING),
    **_each("name_or_path special_tokens_map_file tokenizer_file", PATH),
    **_each("processor_class tokenizer_class use_fast", CLASS),
    "transformers_version": VERSION,
}

KEYS: Mapping[str, Mapping[str, str]] = {
    "model_index": PIPELINE,
    "scheduler": SCHEDULER,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER,
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
    "unet": UNET,
    "vae": VAE,
}


def covered(part: str, key: str) -> bool:
    """Return whether the fingerprint covers a key of the UNet, the VAE or a text encoder."""
    return KEYS[part].get(key, IN) == IN
