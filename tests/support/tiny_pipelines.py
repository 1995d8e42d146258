"""Text-to-image pipelines of some thousand random weights, in the folders that diffusers makes."""

import json
import string

import torch

SIZE = 16  # pixels of an image
PROMPTS = ("a red cube", "two red cubes", "a blue ball", "a ball")
GROUPS = ("cube", "cube", "ball", "ball")
CHARACTERS = sorted(set(string.printable) - set(string.whitespace))


def write_prompts(path, prompts=PROMPTS, groups=GROUPS):
    """A file of prompts with groups; without them for None."""
    entries = [{"prompt": text} | ({} if groups is None else {"group": groups[i]}) for i, text in enumerate(prompts)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def kl_autoencoder():
    """8×8 latents of 4 channels for 16×16 images."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=1.5, shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def clip(projected):
    """CLIP's tokenizer, letter by letter, and an encoder of width 8."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [letter for letter in CHARACTERS if letter not in string.ascii_uppercase]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5():
    """T5's tokenizer, letter by letter, and an encoder of width 16."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in CHARACTERS)]
    tokenizer = T5Tokenizer(pieces, extra_ids=0)
    config = T5Config(vocab_size=len(pieces) + 8, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1)
    return tokenizer, T5EncoderModel(config).eval()


def gemma():
    """Gemma's tokenizer, letter by letter, and an encoder of width 8."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *CHARACTERS]
    tokenizer = GemmaTokenizer({word: i for i, word in enumerate(words)}, [])
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    return tokenizer, Gemma2Model(config).eval()


def sd3(**changes):
    """Stable Diffusion 3, with all three text encoders."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=8, caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8,
    )  # fmt: skip
    (one, text_one), (two, text_two), (three, text_three) = clip(True), clip(True), t5()
    parts = {
        "tokenizer": one, "text_encoder": text_one, "tokenizer_2": two, "text_encoder_2": text_two,
        "tokenizer_3": three, "text_encoder_3": text_three, "vae": kl_autoencoder(), "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip
    return StableDiffusion3Pipeline(**parts | changes)


def flux():
    """Flux with a guidance input."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    (one, text_one), (two, text_two) = clip(False), t5()
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), kl_autoencoder(), text_one, one, text_two, two,
        transformer,
    )  # fmt: skip


def sana():
    """Sana, whose latents are half as high as its images too."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), upsample_block_type="interpolate", downsample_block_type="conv",
        scaling_factor=0.4,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8,
    )  # fmt: skip
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    tokenizer, text_encoder = gemma()
    return SanaPipeline(tokenizer, text_encoder, autoencoder, transformer, solver)


def lumina2():
    """Lumina Image 2."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(300, 8, 8),
        cap_feat_dim=8,
    )  # fmt: skip
    tokenizer, text_encoder = gemma()
    return Lumina2Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=6.0), kl_autoencoder(), text_encoder, tokenizer
    )


def save_pipeline(make, folder, seed=0):
    """Write a pipeline whose transformer has weights N(0, 0.2²), so that prompts, times and guidance all matter."""
    torch.manual_seed(seed)
    pipe = make()
    for p in pipe.transformer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    pipe.save_pretrained(folder)
    return folder
