"""The chapter's experiment: equal budgets, equal cuts, and figures that say what they are named after."""

import pytest
import torch

from gated.polarization import costs, slice_blocks, study


def images(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (number,), generator=gen)
    return torch.randn(number, 1, 4, 4, generator=gen) + y[:, None, None, None], y


TASK = study.Task(images(64, 0), images(16, 1), images(16, 2))
SETTING = study.Setting((2, 2), (2, 3), steps=10, batch=8)
PICKED = dict.fromkeys(study.WAYS, (0.01, 0.5))


@pytest.fixture(scope="module")
def found():
    return study.arms(TASK, SETTING, 0, PICKED)


def test_all_ways_spend_what_the_one_pass_spent_to_within_a_step(found):
    budget = found["this"]["used"]
    step = SETTING.batch * (costs(study.build(TASK, SETTING, 0), 4, 4).total_macs + 200)
    for way, result in found.items():
        if way not in ("unpolarized", "free", "free, fast", "full, all steps", "random, same steps"):
            assert budget - 2 * step < result["used"] <= budget, way


def test_what_is_cut_meets_the_target_within_half_of_the_costliest_block(found):
    full = costs(study.build(TASK, SETTING, 0), 4, 4)
    for way in ("this", "free", "random 0", "random 2", "tune", "lot", "mask, same start", "mask, new start"):
        share = (found[way]["macs"] - full.fixed_macs) / sum(full.macs)
        assert abs(share - 0.5) <= max(full.macs) / sum(full.macs) / 2 + 1e-9, way
    assert found["this"]["macs"] == found["mask, new start"]["macs"]
    assert found["this"]["same"] is True
    score = study.random_score(SETTING, 0)
    assert found["lot"]["pattern"] == study.cut_by(TASK, SETTING, score)
    assert found["random 0"]["macs"] == found["lot"]["macs"]


def test_a_ranking_by_weights_keeps_the_blocks_with_the_largest_ones(monkeypatch):
    def heavy(task, setting, net, *rest):
        if all(hasattr(block, "branch") for block in net.blocks):  # not yet cut
            with torch.no_grad():
                for block, factor in zip(net.blocks, (9, 1, 1, 9), strict=True):
                    block.branch[0].weight.mul_(factor)
        return 0

    monkeypatch.setattr(study, "fit", heavy)
    tuned = study.train_cut_tune(TASK, SETTING, 0, 0.01, 1.0, 0.5)
    assert tuned["pattern"][1:] == [False, False, True]


def test_without_polarization_the_one_pass_is_asked_for_none(monkeypatch):
    asked, original = [], study.one_pass

    def spy(*args, **kwargs):
        asked.append(kwargs["polarization"])
        return original(*args, **kwargs)

    monkeypatch.setattr(study, "one_pass", spy)
    study.arms(TASK, SETTING, 0, PICKED, only=["unpolarized", "free, fast"])
    assert asked == [study.POLARIZATION, 0, study.POLARIZATION]


def test_the_same_seed_gives_the_same_run_and_another_way_does_not_change_it(found):
    again = study.arms(TASK, SETTING, 0, PICKED, only=["this", "random 1"])
    assert list(again) == ["this", "random 1"]
    assert again["this"] == found["this"] and again["random 1"] == found["random 1"]


def test_random_networks_start_from_the_weights_of_the_full_one():
    net = study.build(TASK, SETTING, 3)
    small = slice_blocks(net, study.cut_by(TASK, SETTING, study.random_score(SETTING, 4)))
    torch.testing.assert_close(small.head[2].weight, study.build(TASK, SETTING, 3).head[2].weight)


def test_the_budget_of_a_plain_run_is_counted_in_whole_steps():
    net = study.build(TASK, SETTING, 0)
    each = SETTING.batch * costs(net, 4, 4).total_macs
    assert study.fit(TASK, SETTING, net, 0, 0.01, 3.9 * each) == 3 * each


def test_agreement_keeps_the_bound_and_every_point_of_the_grid_is_tried():
    run = study.agreement(TASK, SETTING, 0, 0.01, activation=1.0, polarization=-2.0, first=1.0)
    assert run["changed"] <= run["path"] <= run["bound"] <= 1
    assert abs(run["bound"] - min(1, sum(run["dissent"]))) < 1e-9
    assert len(study.grid("this")) == 6 and len(study.grid("full")) == 3
    for way in study.WAYS:
        assert 0 <= study.choose(TASK, SETTING, 1, way, 0.01, 0.5) <= 1


def test_a_ramp_goes_up_and_down_and_reports_each_step():
    seen = []
    original = study.train_step

    def spy(*args, **kwargs):
        seen.append(kwargs["activation"])
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "train_step", spy)
        run = study.ramp(TASK, SETTING, 0, 0.01, polarization=0.0, highest=4.0)
    assert len(run["open"]) == SETTING.steps
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([0, 0.8, 1.6, 2.4, 3.2, 4, 3.2, 2.4, 1.6, 0.8]))


def test_after_a_ramp_the_price_may_stay_at_nothing():
    plain = study.ramp(TASK, SETTING, 0, 0.01, polarization=0.0, highest=4.0)
    run = study.ramp(TASK, SETTING, 0, 0.01, polarization=0.0, highest=4.0, after=3)
    assert run["open"] == plain["open"] and len(run["after"]) == 3 and len(run["logits"]) == 4
