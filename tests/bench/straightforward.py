"""Two other implementations of a tuning step, for comparison with `mos_client.tuning`.

`Straightforward` is ED-LoRA written from the paper's description (section 3.2), unoptimised. A word
is one new token for each cross-attention layer, so a prompt becomes one prompt per layer, and each
passes the text encoder separately. The whole token table is a parameter, and the rows that should
not have moved are restored after the step, as in the paper's repository. Pictures pass the VAE
whenever they are shown. A pair is a module around the linear it changes.

`SingleEmbedding` is the LoRA step of diffusers' training scripts: PEFT adapters on the same
linears, one text encoding that all layers read, precomputed latents. It learns no words: V is
replaced by the class word, the cheapest possible choice.

All take the same batch: latents or pictures, captions with V in the concept's place, noise, times.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss, scaled_dot_product_attention

from mos_common.base_model import Base

RANK = 4
UNET_LINEARS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Pair(nn.Module):
    """A linear with a low-rank pair beside it, alpha = rank."""

    def __init__(self, around: nn.Linear, A: Tensor) -> None:
        super().__init__()
        self.around = around
        self.down = nn.Linear(around.in_features, len(A), bias=False, device=around.weight.device)
        self.up = nn.Linear(len(A), around.out_features, bias=False, device=around.weight.device)
        with torch.no_grad():
            self.down.weight.copy_(A)
            self.up.weight.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        return self.around(rows) + self.up(self.down(rows))


class LayerAttention:
    """Cross-attention that reads its own layer's encoding."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Sequence[Tensor], **_: object
    ) -> Tensor:
        text = encoder_hidden_states[self.number]

        def heads(rows: Tensor) -> Tensor:
            return rows.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        attended = scaled_dot_product_attention(heads(query), heads(key), heads(value))
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))


class Straightforward:
    """ED-LoRA from the paper's description, unoptimised.

    `words` is (layers, 2, width); `A` maps the model's name of every linear to its first factor.
    """

    def __init__(self, base: Base, words: Tensor, A: dict[str, Tensor], rates: Sequence[float]) -> None:
        self.base, self.layers = base, len(words)
        self.vae, self.tokenizer = base.vae, copy.deepcopy(base.tokenizer)
        self.unet, self.encoder = with_the_same_weights(base.unet), with_the_same_weights(base.text_encoder)
        self.scheduler = DDPMScheduler.from_config(base.scheduler.config, clip_sample=False)
        for number, attention in enumerate(_cross_attentions(self.unet)):
            attention.processor = LayerAttention(number)

        names = [[f"<word-{k}-{w}>" for w in range(words.shape[1])] for k in range(self.layers)]
        self.names = [" ".join(of_layer) for of_layer in names]
        self.tokenizer.add_tokens([name for of_layer in names for name in of_layer])
        embedding = self.encoder.get_input_embeddings()
        self.untouched = embedding.weight.detach().float()
        whole = torch.cat([self.untouched, words.flatten(0, 1).to(self.untouched)])
        self.table = embedding.weight = nn.Parameter(whole)
        embedding.register_forward_hook(lambda _module, _inputs, rows: rows.to(base.dtype))

        of_text = _wrap(self.encoder, TEXT_LINEARS, {n: a for n, a in A.items() if n.startswith("text_encoder.")})
        of_unet = _wrap(self.unet, UNET_LINEARS, {n: a for n, a in A.items() if n.startswith("unet.")})
        groups = zip(([self.table], of_text, of_unet), rates, strict=True)
        self.optimiser = torch.optim.AdamW([{"params": p, "lr": rate} for p, rate in groups], weight_decay=0.01)

    @property
    def words(self) -> Tensor:
        """The concept's rows of the table: (layers, words, width)."""
        return self.table[len(self.untouched) :].unflatten(0, (self.layers, -1))

    def loss(self, pictures: Tensor, captions: Sequence[str], noise: Tensor, times: Tensor) -> Tensor:
        """E‖ε − ε_θ(x_t, t, text)‖² over the batch."""
        device = self.base.device
        with _autocast(self.base):
            latents = self.base.encode_pictures(pictures.to(device)).float()
            texts = []
            for name in self.names:
                prompts = [caption.replace("V", name) for caption in captions]
                texts.append(self.encoder(_token_ids(self.tokenizer, prompts, device)).last_hidden_state)
            noise, times = noise.to(device), times.to(device)
            predicted = self.unet(self.scheduler.add_noise(latents, noise, times), times, texts).sample
            return mse_loss(predicted.float(), _target(self.scheduler, latents, noise, times))

    def step(self, pictures: Tensor, captions: Sequence[str], noise: Tensor, times: Tensor) -> float:
        """One optimiser step; its loss."""
        loss = self.loss(pictures, captions, noise, times)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            self.table[: len(self.untouched)] = self.untouched
        return float(loss.detach())


class SingleEmbedding:
    """The step of diffusers' LoRA scripts: PEFT adapters, an encoding per prompt, torch's AdamW."""

    def __init__(self, base: Base, class_word: str, rates: Sequence[float]) -> None:
        from peft import LoraConfig

        self.base, self.class_word, self.tokenizer = base, class_word, base.tokenizer
        self.unet, self.encoder = with_the_same_weights(base.unet), with_the_same_weights(base.text_encoder)
        self.scheduler = DDPMScheduler.from_config(base.scheduler.config, clip_sample=False)
        for model, linears in ((self.encoder, TEXT_LINEARS), (self.unet, UNET_LINEARS)):
            adapter = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=list(linears))
            model.add_adapter(adapter)
        of_text, of_unet = ([p for p in m.parameters() if p.requires_grad] for m in (self.encoder, self.unet))
        for parameter in (*of_text, *of_unet):  # the weights stay in the model's precision, the adapter is float32
            parameter.data = parameter.data.float()
        groups = zip((of_text, of_unet), rates[1:], strict=True)
        self.optimiser = torch.optim.AdamW([{"params": p, "lr": rate} for p, rate in groups], weight_decay=0.01)

    def loss(self, latents: Tensor, captions: Sequence[str], noise: Tensor, times: Tensor) -> Tensor:
        """The same loss over the same batch, V being the class word."""
        device = self.base.device
        prompts = [caption.replace("V", self.class_word) for caption in captions]
        with _autocast(self.base):
            text = self.encoder(_token_ids(self.tokenizer, prompts, device)).last_hidden_state
            latents, noise, times = latents.to(device), noise.to(device), times.to(device)
            predicted = self.unet(self.scheduler.add_noise(latents, noise, times), times, text).sample
            return mse_loss(predicted.float(), _target(self.scheduler, latents, noise, times))

    def step(self, latents: Tensor, captions: Sequence[str], noise: Tensor, times: Tensor) -> float:
        """One optimiser step; its loss."""
        loss = self.loss(latents, captions, noise, times)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())


def with_the_same_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares its frozen weights but no modules."""
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


def _cross_attentions(unet: Any) -> list[Any]:
    """Return the cross-attentions in execution order."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    transformers = [t for block in blocks for t in getattr(block, "attentions", None) or ()]
    return [inner.attn2 for transformer in transformers for inner in transformer.transformer_blocks]


def _wrap(model: nn.Module, linears: Sequence[str], A: dict[str, Tensor]) -> list[nn.Parameter]:
    """Put a pair around each named linear of the model's attentions; return the parameters."""
    parameters: list[nn.Parameter] = []
    for name, factor in A.items():
        path = name.partition(".")[2]
        if not any(path == known or path.endswith(f".{known}") for known in linears):
            raise AssertionError(f"{name} is not a linear of an attention")
        try:
            inner = model.get_submodule(path)
        except AttributeError:  # newer releases of CLIP have one level less
            path = path.removeprefix("text_model.")
            inner = model.get_submodule(path)
        pair = Pair(inner, factor)
        model.set_submodule(path, pair)
        parameters += [pair.down.weight, pair.up.weight]
    return parameters


def _token_ids(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    ids = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return ids.input_ids.to(device)


def _target(scheduler: Any, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    return noise if predicts_noise else scheduler.get_velocity(latents, noise, times)


def _autocast(base: Base) -> Any:
    return torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype != torch.float32)
