"""What a mixed model of statsmodels tells of simulated lines, in numbers that stay: see `test_change.py`.

python tests/oracles/change_mixed_model.py     prints MIXED_MODEL; needs statsmodels (0.15.0 made these)
"""

import numpy as np
import pandas as pd

MIXED_MODEL = {
    "mean": 0.6860343793336279,
    "mean_error": 0.020329395269166724,
    "rate_sd": 0.36335131317615654,
    "noise": 0.1468541599163234,
    "first_rates": [1.0530049901967264, 0.6602438899604707, 0.8609716154193618, 1.414426760188523, 0.3876253579287071],
}


def lines_table(num_subjects=400, *, seed=0, mean=0.7, rate_sd=0.4, noise=0.15, most=6):
    """Two to six irregular visits a subject; levels, which differ more than rates do, tell nothing of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_subjects):
        years = np.cumsum(rng.uniform(0.2, 0.9, rng.integers(2, most + 1)))
        rate = rng.normal(mean, rate_sd)
        values = 3 * rng.normal() + rate * years + noise * rng.normal(size=len(years))
        rows += [(f"s{number:04d}", year, value, rate) for year, value in zip(years - years[0], values, strict=True)]
    return pd.DataFrame(rows, columns=["subject", "visit_time", "progress", "true_rate"])


if __name__ == "__main__":
    from statsmodels.regression.mixed_linear_model import MixedLM

    table = lines_table()
    design = np.column_stack([np.ones(len(table)), table["visit_time"]])
    fitted = MixedLM(table["progress"], design, groups=table["subject"], exog_re=design).fit(reml=True)
    rates = [fitted.fe_params.iloc[1] + effects.iloc[1] for effects in fitted.random_effects.values()]
    print(
        {
            "mean": float(fitted.fe_params.iloc[1]),
            "mean_error": float(fitted.bse_fe.iloc[1]),
            "rate_sd": float(np.sqrt(fitted.cov_re.iloc[1, 1])),
            "noise": float(np.sqrt(fitted.scale)),
            "first_rates": [float(rate) for rate in rates[:5]],
        }
    )
