"""The benchmark of explanations: its quick form runs, its intervals cover, and its verdict names who is best."""

import json

import explanations
import pytest
import torch


def test_the_quick_form_measures_everything_and_stores_nothing(run_quick):
    table = "\n".join(run_quick(explanations)).split("best method")
    names = {f"shapes.{measure}.{method}" for measure in ("deletion", "insertion", "mask_share", "pointing_game")
             for method in (*explanations.METHODS, "random")}  # fmt: skip
    assert {line.split()[0] for line in table[0].strip().splitlines()} == names
    assert len(table[1].strip().splitlines()) == 5


def test_a_claim_has_its_interval_and_fits_in_a_results_file():
    values = 50 + 10 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    c = explanations.claims_of("cifar10", {"deletion": {"relevance": values}}, "x")[0]
    half = 1.96 * values.std().item() / 400**0.5  # of a normal distribution's mean
    assert c["name"] == "cifar10.deletion.relevance" and c["num_images"] == 400
    assert c["value"] == pytest.approx(values.mean().item(), abs=1e-3)
    assert c["spread"] == pytest.approx(half, rel=0.1)
    assert c["interval"] == pytest.approx([c["value"] - half, c["value"] + half], abs=0.15)
    assert len(json.dumps(c)) < 1000


def test_the_verdict_names_the_best_and_who_cannot_be_told_from_it():
    noise = torch.randn(300, generator=torch.Generator().manual_seed(3))
    of_method = dict(
        zip(explanations.METHODS, (50 + noise, 50 + noise.flip(0) / 2, 49 + noise, 70 + noise), strict=True)
    )
    of_method["random"] = torch.full((300,), 5.0)  # beats all at deletion, but is no method
    deletion, insertion = explanations.verdict("shapes", {"deletion": of_method, "insertion": of_method})
    assert deletion.split()[:3] == ["shapes", "deletion", "gradient_rollout"] and "random   5.0" in deletion
    assert deletion.endswith("level with it: none"), "the same noise in both: a gap of 1 is certain, image by image"
    assert insertion.split()[2] == "relevance"
    of_method["rollout"] = 70.1 + noise.flip(0)
    assert explanations.verdict("shapes", {"insertion": of_method})[0].endswith("level with it: relevance")
