import pytest
import torch

from builders import dense_policy, random_ids, tiny_policy
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_sequences


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("policy", [tiny_policy(), dense_policy(), dense_policy(tie_word_embeddings=True)])
def test_response_logprobs_are_those_of_the_models_own_forward(policy: Policy, temperature: float) -> None:
    sequence = random_ids(12, seed=0)
    (batch,) = pack_sequences([sequence], [5], micro_tokens=16, one_block=False)
    ours, entropy = response_logprobs(policy.model, batch, temperature=temperature)

    logits = policy.model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, 4:-1]
    everything = torch.log_softmax(logits / temperature, dim=-1)
    expected = everything.gather(1, torch.tensor(sequence[5:])[:, None]).squeeze(1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=everything).entropy())

    upstream = torch.linspace(-1, 1, len(expected))
    parameters = dict(policy.model.named_parameters())
    mine = torch.autograd.grad((ours * upstream).sum(), list(parameters.values()))
    plain = torch.autograd.grad((expected * upstream).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
