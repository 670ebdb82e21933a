"""vLLM as the inference engine. Nothing else in the package imports vLLM, and these modules only when one is made.

vLLM computes. This package adds the contract of `engine.base`:

* log-probabilities of the distribution that was sampled from;
* routes of every fed position, or an error;
* the same completions for the same seed;
* a policy version that rises only when vLLM has all new weights and an empty prefix cache.
"""

from steadyrl.engine.vllm.engine import VLLMEngine
from steadyrl.engine.vllm.release import SUPPORTED, MissingVLLM, require_vllm

__all__ = ["SUPPORTED", "MissingVLLM", "VLLMEngine", "require_vllm"]
