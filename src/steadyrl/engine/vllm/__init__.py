"""vLLM as the inference engine. Nothing else in the package imports vLLM, and these modules only when one is made.

vLLM computes; what this adds is the contract of `engine.base`: log-probabilities of the distribution that was sampled
from, routes of every fed position or an error, the same completions for the same seed, and a policy version that rises
only once vLLM holds the new weights and has forgotten what it computed with the old.
"""

from steadyrl.engine.vllm.engine import VLLMEngine
from steadyrl.engine.vllm.release import SUPPORTED, MissingVLLM, require_vllm

__all__ = ["SUPPORTED", "MissingVLLM", "VLLMEngine", "require_vllm"]
