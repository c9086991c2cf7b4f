import pytest
import torch

from toprovar_fx.errors import SeedError
from toprovar_fx.sampling import MAX_SEED, guide, noise, sample_bits, schedule_noise, seed_tensor
from toprovar_fx.schedules import Schedule

MASK = 2**64 - 1


def splitmix(x):
    """SplitMix64 in exact Python integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@pytest.mark.parametrize(
    ("seed", "scale", "token", "bit"), [(0, 0, 0, 0), (1, 9, 1023, 15), (MAX_SEED, 14, 8, 31)]
)
def test_noise_equals_exact_integer_arithmetic(seed, scale, token, bit):
    counter = (scale << 48) + (token << 12) + bit
    expected = splitmix((splitmix(seed) + counter * 0x9E3779B97F4A7C15) & MASK) >> 40
    value = noise(torch.tensor([seed]), scale, token + 1, bit + 1)[0, token, bit].item()
    assert value == expected / 2**24


def test_noise_does_not_depend_on_batch_or_on_the_other_scales():
    schedule = Schedule.named("scenes").first(6)
    seeds = seed_tensor([7, 123, 7], 3)
    everything = schedule_noise(seeds, schedule, 16)
    assert torch.equal(everything[0], everything[2])
    start = 0
    for scale, (tokens, end) in enumerate(zip(schedule.tokens, schedule.ends, strict=True)):
        assert torch.equal(everything[1:2, start:end], noise(seeds[1:2], scale, tokens, 16))
        start = end


def test_noise_is_uniform_and_uncorrelated():
    value = noise(seed_tensor(0, 64), 3, 256, 16)
    assert value.min() >= 0
    assert value.max() < 1
    assert value.mean().item() == pytest.approx(0.5, abs=2e-3)
    assert value.var().item() == pytest.approx(1 / 12, rel=5e-3)
    for dim in range(3):
        length = value.shape[dim] - 1
        pair = torch.stack((value.narrow(dim, 0, length).flatten(), value.narrow(dim, 1, length).flatten()))
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 8e-3


def test_one_seed_counts_up_and_a_list_is_taken_as_it_is():
    assert seed_tensor(5, 3).tolist() == [5, 6, 7]
    assert seed_tensor([9, 0], 2).tolist() == [9, 0]


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7", None, [1, 2.0], [-3, 1]])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(SeedError, match="expected an integer"):
        seed_tensor(seed, 2)


def test_seed_count_and_overflow_are_refused():
    with pytest.raises(SeedError, match="2 seeds for 3 images"):
        seed_tensor([1, 2], 3)
    with pytest.raises(SeedError, match="for 2 images"):
        seed_tensor(MAX_SEED, 2)


def test_guidance_extrapolates_and_one_is_the_identity():
    logits = torch.randn(4, 3, 6)
    torch.testing.assert_close(guide(logits, 3.0), 3 * logits[:2] - 2 * logits[2:])
    assert guide(logits, 1) is logits


@pytest.mark.parametrize("top_p", [0.0, 0.9, 0.97])
def test_bit_frequencies_follow_the_nucleus_softmax(top_p):
    logits = torch.tensor([-4.0, -2.5, -1.0, 0.0, 0.5, 2.4, 6.0])
    pairs = torch.stack((torch.zeros(7), logits), -1).flatten().expand(1, 4000, 14)
    bits = sample_bits(pairs, noise(seed_tensor(0, 1), 0, 4000, 7), 1, 0.5, top_p)
    probability = torch.softmax(torch.stack((torch.zeros(7), logits / 0.5)), 0)
    if top_p:
        kept = probability > 1 - top_p
        probability = probability * kept / (probability * kept).sum(0)
    torch.testing.assert_close(bits.float().mean((0, 1)), probability[1], atol=0.025, rtol=0)


def test_guided_sampling_equals_guided_logits():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 8)
    uniform = noise(seed_tensor(3, 2), 1, 5, 4)
    assert torch.equal(
        sample_bits(logits, uniform, 3.0, 1.0, 0.97), sample_bits(guide(logits, 3.0), uniform, 1, 1.0, 0.97)
    )


def test_zero_temperature_takes_the_likelier_bit():
    logits = torch.tensor([[[0.0, 1.0, 0.3, 0.2]]])
    assert sample_bits(logits, torch.full((1, 1, 2), 0.999), 1, 0, 0.97).tolist() == [[[True, False]]]


@pytest.mark.gpu
def test_noise_is_the_same_on_the_gpu():
    seeds = seed_tensor([0, MAX_SEED], 2)
    assert torch.equal(noise(seeds, 5, 100, 16), noise(seeds, 5, 100, 16, device="cuda").cpu())
