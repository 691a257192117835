"""Calibration as functions of the subjects' weights: are the predicted risks right in size, not only in order?

`weights` is (R, N) as in `estimates`. Times are years.
"""

import numpy as np

from survival.estimates import NEWTON_MAX_STEP, NEWTON_STEPS, NEWTON_TOLERANCE, ROUNDING, TIED_RISK

NUM_BINS = 10  # of D-calibration


def calibration_slope(weights: np.ndarray, logit: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Slope of a logistic regression of the outcome on the predicted logit.

    Args:
        weights: (R, N), censoring weights included.
        logit: (N,) of the predicted risk.
        outcome: (N,) bool.
    Returns:
        (R,) slopes; infinite where the logit separates the outcomes, NaN without two outcomes or two predictions.
    Source: Cox (1958); Van Calster et al. (2019). Checked against scikit-learn.
    """
    cases, controls = (weights > 0) & outcome, (weights > 0) & ~outcome  # (R, N)
    case_low, case_high = _range_of(logit, cases)
    control_low, control_high = _range_of(logit, controls)
    flat = _has_one_outcome(weights, outcome)
    flat |= np.maximum(case_high, control_high) - np.minimum(case_low, control_low) <= TIED_RISK
    rising, falling = control_high <= case_low, case_high <= control_low
    solvable = ~(flat | rising | falling)
    spread = max(float(np.std(logit)), TIED_RISK)
    x = (logit - logit.mean()) / spread
    slope = _logistic(weights * solvable[:, None], np.zeros_like(logit), outcome, x)[:, 1] / spread
    return np.select([flat, rising, falling], [np.nan, np.inf, -np.inf], slope)


def calibration_intercept(weights: np.ndarray, logit: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Intercept of a logistic regression of the outcome on the predicted logit, whose slope is held at 1.

    Args:
        weights: (R, N), censoring weights included.
        logit: (N,) of the predicted risk.
        outcome: (N,) bool.
    Returns:
        (R,) intercepts; NaN without two outcomes.
    Source: Cox (1958); Van Calster et al. (2019). Checked against scikit-learn.
    """
    flat = _has_one_outcome(weights, outcome)
    intercept = _logistic(weights * ~flat[:, None], logit, outcome, np.zeros_like(logit))[:, 0]
    return np.where(flat, np.nan, intercept)


def _has_one_outcome(weights: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """(R,) bool: all subjects with weight have the same outcome."""
    return ~(((weights > 0) & outcome).any(axis=1) & ((weights > 0) & ~outcome).any(axis=1))


def _range_of(x: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,) least and (R,) greatest x (N,) among the members (R, N)."""
    return np.where(members, x, np.inf).min(axis=1), np.where(members, x, -np.inf).max(axis=1)


def _logistic(weights: np.ndarray, offset: np.ndarray, outcome: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(R, 2) intercept a and slope b of logit P(outcome) = offset + a + b x; b stays 0 where x (N,) is all 0."""
    line = np.zeros((len(weights), 2))
    ridge = np.diag([ROUNDING, ROUNDING])  # the Hessian is singular if x is all 0
    for _ in range(NEWTON_STEPS):
        predicted = 1 / (1 + np.exp(-(offset + line[:, :1] + line[:, 1:] * x)))  # (R, N)
        residual = weights * (outcome - predicted)
        gradient = np.stack([residual.sum(axis=1), residual @ x], axis=1)  # (R, 2)
        curvature = weights * predicted * (1 - predicted)
        entries = [curvature.sum(axis=1), curvature @ x, curvature @ x, curvature @ x**2]
        hessian = np.stack(entries, axis=1).reshape(-1, 2, 2) + ridge
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        line += np.clip(step, -NEWTON_MAX_STEP, NEWTON_MAX_STEP)
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return line


def d_calibration(survival: np.ndarray, grid: np.ndarray, time: np.ndarray, event: np.ndarray) -> dict:
    """D-calibration: if the curves are right, the predicted survival at the event is uniform from 0 to 1.

    A censored subject is spread over the bins below its survival. Between grid points the survival is
    interpolated, from 1 at time 0. A subject whose time is after the last grid point counts as censored there.

    Args:
        survival: (N, T) predicted survival.
        grid: (T,) ascending years.
        time: (N,) years.
        event: (N,) bool.
    Returns:
        `bins`: the share of the subjects in each tenth of the survival from 0 to 1. `statistic` and `p` of the
        chi-squared test against a tenth in each bin; a low p says that the curves are not calibrated.
    Source: Haider et al. (2020), section 3.5.
    """
    from scipy.stats import chi2  # slow to import

    years = np.concatenate([[0.0], grid])  # (1 + T,)
    curves = np.column_stack([np.ones(len(time)), survival])  # (N, 1 + T)
    at_end = np.array([np.interp(end, years, curve) for end, curve in zip(time, curves, strict=True)])[:, None]
    lower = np.arange(NUM_BINS) / NUM_BINS  # (bins,)
    in_bin = np.minimum((at_end * NUM_BINS).astype(int), NUM_BINS - 1) == np.arange(NUM_BINS)  # (N, bins)
    overlap = np.clip(at_end - lower, 0, 1 / NUM_BINS)  # of each bin with the interval from 0 to the survival
    spread = np.divide(overlap, at_end, out=in_bin.astype(float), where=at_end > 0)
    counts = np.where((event & (time <= years[-1]))[:, None], in_bin, spread).sum(axis=0)
    statistic = float(((counts - len(time) / NUM_BINS) ** 2).sum() / (len(time) / NUM_BINS))
    shares = (counts / len(time)).tolist()
    return {"statistic": statistic, "p": float(chi2.sf(statistic, NUM_BINS - 1)), "bins": shares}
