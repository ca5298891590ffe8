"""experiments.off_policy on a small wheel with logs of known click rates, its parts, and where it finds the wheel."""

import hashlib
import io
import json
import subprocess
import zipfile

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from experiments import off_policy

ITEMS, ROWS = 5, 4000
UNIFORM = np.full((3, ITEMS), 1 / ITEMS)
BTS = np.array([[0.5, 0.3, 0.1, 0.1, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1, 0.6]])
RATES = np.array([[0.4, 0.1, 0.1, 0.2, 0.1], [0.3, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.3]])


def draw_log(policy, seed):
    """The columns of a log of a policy [position, item] whose clicks have the probabilities RATES."""
    rng = np.random.default_rng(seed)
    position = rng.integers(0, 3, ROWS)
    item = np.array([rng.choice(ITEMS, p=policy[k]) for k in position])
    click = (rng.random(ROWS) < RATES[position, item]).astype(int)
    return off_policy.Log(item, position, click, policy[position, item])


def as_csv(log):
    lines = ["a,timestamp,item_id,position,click,propensity_score,user_feature_0"]
    lines += [f"{t},now,{i},{k + 1},{r},{p},hash" for t, (i, k, r, p) in enumerate(zip(*log, strict=True))]
    return "\n".join(lines)


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """The path of a wheel with the files that the experiment reads; its sha256 is the expected one."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        priors = "".join(
            f"{campaign}:\n  alpha:\n" + "    - 2.0\n" * ITEMS + "  beta:\n" + "    - 30.0\n" * ITEMS
            for campaign in off_policy.CAMPAIGNS
        )
        archive.writestr("obp/policy/conf/prior_bts.yaml", priors)
        for seed, campaign in enumerate(off_policy.CAMPAIGNS):
            for number, (name, policy) in enumerate({"random": UNIFORM, "bts": BTS}.items()):
                log = draw_log(policy, 10 * seed + number)
                archive.writestr(f"obp/dataset/obd/{name}/{campaign}/{campaign}.csv", as_csv(log))
    monkeypatch.setattr(off_policy, "SHA256", hashlib.sha256(content.getvalue()).hexdigest())
    path = tmp_path / off_policy.WHEEL
    path.write_bytes(content.getvalue())
    return path


@pytest.mark.slow
def test_the_experiment_estimates_the_mean_of_the_other_log(small_wheel, tmp_path, capsys):
    out = tmp_path / "out"
    settings = off_policy.Settings(path=str(small_wheel), out=str(out), draws=300, replications=30, rows=300, folds=4)
    returned = off_policy.main(settings)
    result = json.loads((out / "off_policy.json").read_text())
    assert returned["metrics"] == result["metrics"]
    assert {path.name for path in out.iterdir()} == {"off_policy.json", "off_policy.png"}
    values = result["metrics"]
    true = np.mean(np.sum(BTS * RATES, axis=1))
    for campaign in off_policy.CAMPAIGNS:
        for estimator in off_policy.ESTIMATORS:
            low, high = (values[f"average_{campaign}_{estimator}_{end}"] for end in ("low", "high"))
            assert 0.02 < high - low < 0.08
            assert low - 0.02 < true < high + 0.02
            held = low <= values[f"average_{campaign}_own_log"] <= high
            assert values[f"average_{campaign}_{estimator}_holds"] == held
            skew_low, skew_high = (values[f"average_{campaign}_{estimator}_skew_{end}"] for end in ("low", "high"))
            assert low < skew_low < high < skew_high, "rewards are rare, so the interval moves up"
        assert abs(values[f"average_{campaign}_own_log"] - true) < 0.03
    held = sum(values[f"average_{campaign}_doubly_robust_holds"] for campaign in off_policy.CAMPAIGNS)
    assert values["doubly_robust_holds"] == held
    assert f"in {held} of 3 campaigns" in capsys.readouterr().out


def test_read_log_and_priors_return_what_is_in_the_files(small_wheel):
    with zipfile.ZipFile(small_wheel) as archive:
        got = off_policy.read_log(archive, "bts", "men")
        alpha, beta = off_policy.read_priors(archive, "women")
    for column, expected in zip(got, draw_log(BTS, 11), strict=True):
        np.testing.assert_allclose(column, expected, rtol=1e-6)
    assert (alpha.tolist(), beta.tolist()) == ([2.0] * ITEMS, [30.0] * ITEMS)


def test_the_average_policy_is_how_often_an_item_was_shown_at_a_position():
    log = off_policy.Log(np.array([0, 1, 1, 0, 2]), np.array([0, 0, 0, 1, 2]), np.zeros(5), np.ones(5))
    np.testing.assert_allclose(off_policy.average_policy(log, 3), [[1 / 3, 2 / 3, 0], [1, 0, 0], [0, 0, 1]])


def test_the_prior_policy_shows_an_item_first_as_often_as_its_rate_is_the_largest():
    alpha, beta, draws = np.array([3.0, 2.0, 1.0]), np.array([5.0, 5.0, 5.0]), 20_000
    got = off_policy.prior_policy(alpha, beta, key=jax.random.key(0), draws=draws)
    np.testing.assert_allclose(got.sum(axis=1), 1)
    np.testing.assert_allclose(got.sum(axis=0), 1)  # each of the three items is shown once
    for item in range(3):
        others = [stats.beta(alpha[k], beta[k]) for k in range(3) if k != item]
        density = stats.beta(alpha[item], beta[item]).pdf
        first, _ = integrate.quad(lambda x: density(x) * np.prod([each.cdf(x) for each in others]), 0, 1)
        assert abs(got[0, item] - first) < 4 * np.sqrt(first * (1 - first) / draws)


def test_no_row_predicts_itself():
    log = draw_log(UNIFORM, 0)
    options = {"n_items": ITEMS, "folds": 3, "shrinkage": 5.0}
    got = off_policy.predict(log, **options, rng=np.random.default_rng(0))
    fold = np.random.default_rng(0).permutation(ROWS) % 3
    other = log._replace(click=np.where(np.arange(ROWS) == 7, 1 - log.click, log.click))
    changed = (off_policy.predict(other, **options, rng=np.random.default_rng(0)) != got).any(axis=1)
    assert not changed[fold == fold[7]].any()
    assert changed[fold != fold[7]].all()
    t = 7  # the formula, by loops over the rows of the other folds
    rest = [s for s in range(ROWS) if fold[s] != fold[t]]
    rate = np.mean([log.click[s] for s in rest])
    for i in range(ITEMS):
        of_item = [s for s in rest if log.item[s] == i]
        item_rate = (sum(log.click[s] for s in of_item) + 5 * rate) / (len(of_item) + 5)
        here = [s for s in of_item if log.position[s] == log.position[t]]
        expected = (sum(log.click[s] for s in here) + 5 * item_rate) / (len(here) + 5)
        assert got[t, i] == pytest.approx(expected, rel=1e-12)


# Where the wheel comes from


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXREC_DATA", raising=False)


def pip_that(monkeypatch, wheel=None):
    """Replaces pip by a function that copies the wheel, or fails; returns the commands that were run."""
    commands = []

    def run(command, **options):
        commands.append(command)
        if wheel is not None:
            folder = command[command.index("--dest") + 1]
            (type(wheel)(folder) / off_policy.WHEEL).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, wheel is None, "", "ERROR: no index")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.usefixtures("empty_cache")
def test_the_wheel_is_downloaded_once(small_wheel, monkeypatch):
    commands = pip_that(monkeypatch, small_wheel)
    for _ in range(2):
        assert off_policy.wheel("").read_bytes() == small_wheel.read_bytes()
    assert len(commands) == 1
    assert commands[0][1:5] == ["-I", "-m", "pip", "download"]
    assert commands[0][-1] == "obp==0.4.1"


@pytest.mark.usefixtures("empty_cache")
def test_a_wheel_that_cannot_be_had_or_is_another_is_refused(small_wheel, monkeypatch, tmp_path):
    pip_that(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(ERROR: no index\).*--path"):
        off_policy.wheel("")
    with pytest.raises(FileNotFoundError, match="which is no file"):
        off_policy.wheel(str(tmp_path / "none.whl"))
    pip_that(monkeypatch, small_wheel)
    monkeypatch.setattr(off_policy, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected sha256 0000"):
        off_policy.wheel(str(small_wheel))
    with pytest.raises(ValueError, match="hash"):
        off_policy.wheel("")


@pytest.mark.usefixtures("empty_cache")
def test_the_wheel_in_the_data_folder_is_used(small_wheel, monkeypatch):
    monkeypatch.setenv("JAXREC_DATA", str(small_wheel.parent))
    assert off_policy.wheel("") == small_wheel
