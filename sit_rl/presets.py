"""Named configurations: the embedded default, a smoke test, and the paper's settings on ImageNet."""

from dataclasses import replace

from sit_rl.config import Config
from sit_rl.models.generator_model import Sampling
from sit_rl.sampling.sampler_config import SamplerConfig

# Several small networks of different shapes and trainings: what one of them overlooks, another may see.
MIX = ("fd:fashion-a", "fd:fashion-c", "fd:fashion-d", "fd:fashion-f")
FASHION = Config.of(reward=MIX, reference="fresh")
SIT_XL = Config.of(
    preset="sit-xl-imagenet256", steps=450, estimator="sde_policy_gradient", credit="subset", normalise="batch",
    reference="refresh", candidates=32, keep=0.25, fade=False, updates=4, minibatch=100,
    lr=1e-5, lr_schedule="constant", warmup=0, rollout_batch=50,
    rollout=SamplerConfig("ode", "heun", 25), rollout_sde=SamplerConfig("sde", "euler", 50),
    evaluate_ode=SamplerConfig("ode", "dopri5", 250), evaluate_sde=SamplerConfig("sde", "euler", 250),
    evaluate_images=50_000, evaluate_every=50, evaluate_every_images=5_000, ema=0.99,
    reward_features="inception", judge_features=("none",), precision="bf16", micro_batch=16,
)  # fmt: skip
# The same with DiT's own chain: the paper's 50 steps train; DDPM of 250 steps and DDIM of as many evaluate.
DIT_XL = SIT_XL.changed(
    preset="dit-xl-imagenet256", architecture="dit",
    rollout=SamplerConfig("discrete", "ddim", 50), rollout_sde=SamplerConfig("discrete", "ddpm", 50),
    evaluate_ode=SamplerConfig("discrete", "ddim", 250), evaluate_sde=SamplerConfig("discrete", "ddpm", 250),
)  # fmt: skip
SMOKE = Config.of(
    preset="smoke", steps=2, reference_size=200, replace=10, candidates=4, updates=2, minibatch=20,
    rollout_batch=20, embedded_images=1_000,
    rollout=SamplerConfig("ode", "adams", 3), rollout_sde=SamplerConfig("sde", "euler", 3),
    evaluate_ode=SamplerConfig("ode", "adams", 3), evaluate_sde=SamplerConfig("sde", "adams", 3),
    evaluate_images=200, evaluate_every=1, evaluate_every_images=100,
)  # fmt: skip
# Prompts with a pipeline: LoRA on frozen bfloat16 weights.  Steps, guidance and shift are the pipeline's
# (`for_pipeline`).  Flow-GRPO trains on paths of 10 steps (arXiv 2505.05470).  The sizes are those of the ImageNet runs
# cut to images of 1024 pixels. No pipeline of full size has been trained with them.
PROMPTS = Config.of(
    preset="prompts", steps=100, lora=32, candidates=16, replace=50, minibatch=200, micro_batch=4, rollout_batch=8,
    activation_checkpointing=True, precision="bf16", reward_features="inception", judge_features=("none",),
    rollout=SamplerConfig("ode", "euler", 28), rollout_sde=SamplerConfig("sde", "euler", 10, diffusion="flow_grpo"),
    evaluate_ode=SamplerConfig("ode", "euler", 28), evaluate_sde=SamplerConfig("sde", "euler", 28),
    evaluate_every=20, evaluate_every_images=1_000,
)  # fmt: skip
# Against a few hundred held-out images, 5,000 samples say no more than 2,000, which take half of the time.
OWN = Config.of(preset="own", reference_size=2_500, evaluate_images=2_000)
# name: (what it is, its config)
PRESETS = {
    "fashion": ("Fashion-MNIST with the embedded model, on a CPU (default)", FASHION),
    "smoke": ("seconds-long run of every part, for tests: numbers mean nothing", SMOKE),
    "own": ("a model of your own images, a folder of sit_rl.pretrain base; needs --checkpoint", OWN),
    "sit-xl-imagenet256": ("the paper's settings; needs --checkpoint, --vae and --real", SIT_XL),
    "prompts": ("a text-to-image pipeline of diffusers; needs --model, --prompts and --real", PROMPTS),
    "dit-xl-imagenet256": ("the paper's settings for DiT-XL/2, by DDPM and DDIM; needs the same", DIT_XL),
}


def for_pipeline(config: Config, sampling: Sampling) -> Config:
    """A config whose samplers have the pipeline's guidance and shift, and its steps where images are evaluated."""
    own = {"guidance": sampling.guidance, "shift": sampling.shift}
    steps = {"rollout": sampling.steps, "evaluate_ode": sampling.steps, "evaluate_sde": sampling.steps}
    names = ("rollout", "rollout_sde", "evaluate_ode", "evaluate_sde")
    return config.changed(
        **{name: replace(config[name], steps=steps.get(name, config[name].steps), **own) for name in names}
    )
