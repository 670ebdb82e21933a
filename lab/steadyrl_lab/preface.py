"""The fixed text of the lab's page: what it is, how it is judged, how its tables are read."""

from steadyrl.collapse import FALLS_BELOW, STAYS, WINDOW
from steadyrl_lab.alarm import QUANTILE
from steadyrl_lab.verdict import ONE_SIDED

HEAD = """\
# Replication

<!-- Printed by `python -m steadyrl_lab report` from lab/results; edit lab/figures and run the arms instead. -->

These are the experiments of "Stabilizing Reinforcement Learning with LLMs: Formulation and Practices" (arXiv
2512.01374), at a scale that runs on two CPU cores. Some arms are not in the paper. Every figure is a file in
`lab/figures/` with its regime, arms and seeds, and the rule of each verdict.

| command | what it does |
|---|---|
| `python -m steadyrl_lab run FIGURE` | makes the runs that have no result yet |
| `python -m steadyrl_lab report` | packs the results, and draws this page and its pictures from them |

To rerun a whole figure, first delete `lab/results/FIGURE.jsonl.xz` and `lab/runs/FIGURE`.
"""

JUDGED = f"""\
- Arms of a figure share prompts, random numbers and the number of gradient updates. They also share the cold start,
  except in figure 5, which compares cold starts. The mini-batch is fixed: a global batch holds N of them, and gives N
  updates.
- A cold start ends at the first check where its accuracy reaches its mark. The check uses the problems and the random
  numbers of the evaluations. So the first value of every curve is optimistic by about the noise of one check.
- A run has **collapsed** once its reward stays below {FALLS_BELOW:.2f} of its best so far until the end. The reward
  is averaged over {WINDOW} updates. The collapse must last at least {STAYS:.0%} of the run and two steps. A run that
  stopped because of non-finite updates has collapsed, and its final accuracy counts as 0. A run whose reward drops
  before it has risen has not collapsed. The number in brackets counts runs that end no better than they began, by
  held-out accuracy.
- Differences are paired by seed, with Student's 95% interval. *Replicated*: the whole interval is on the claimed
  side. *Contradicted*: the whole interval is on the other side, at this scale. All else is *not visible here*. It is
  *undecided* if the interval holds both sides. Then the page estimates how many seeds would decide it, and for which
  side, if mean and spread stay the same.
- An interval over seeds does not include the noise of the evaluations. They ask 512 problems in *calm*, *calm-32* and
  *stress* (about ±0.04 each), and 256 in *long* and *deep* (about ±0.06 each). Few seeds may agree more closely by
  luck, as R3 minus R2 in *deep*.
- A share of runs has Wilson's interval, and is compared with one half. With five seeds only 5 of 5 decides for it,
  and 0 of 5 against it. Each has a chance of 3% where one half is true. Whether one arm collapses more often than
  another is decided by the sign test over the seeds where they differ, with {ONE_SIDED:.0%} on either side.
- A claim is replicated if all its rules are, and contradicted if one rule is. A true claim with k rules is
  contradicted by chance in up to k · 3% of cases. Words of a claim that no rule tests (*early*, *slightly*) are the
  paper's.
- Some claims say what saves a run, or fails to. Such a claim is not visible unless the arm without clip and replay
  collapses in most runs. This is a count without an interval: there was *nothing*, or *too few*, *to be saved from*.
- A collapse *shows* if around it the entropy is below that of every stable run of the figure at the same updates, or
  the divergence is above it.
- Rules were committed before the runs that they judge. There are these exceptions:
  - After figure 4 in *calm* and in *stress* was drawn: the rule above on claims about saving a run. It turned two
    verdicts of figure 4 in *calm* from contradicted to not visible (C6, and that R3 alone does not save a run).
  - At the same time: C8 requires stable runs. How a collapse shows was changed, because the first rule fired on
    stable runs as often as on collapses.
  - After figure 1 in *calm* and figure 4 in *long*: a collapse must last two steps. One run of figure 4 in *long*
    dropped in its very last step.
  - After figures 1 to 4 in *calm*, figure 4 in *stress* and on vLLM and most of *long*: the sign test. It replaced
    Student's interval of differences of 0 and 1, which called 4 of 5 against none decided in *stress*.
  - Figure 4 in *deep* was cut from five seeds to three, for time, after six of its runs.
  - A claim that was written after some of its runs says so.
- *calm-32* later got a cold start that every seed reaches. Then all its figures were rerun, because its regime had
  changed. Before, its engines gave the same result over three seeds, +0.013 [-0.004, +0.030]; one seed had missed its
  mark.
- The learning rate was chosen with MiniRL alone: in *calm* and *long* on two of the seeds that are judged here, in
  *deep* on one. *calm-32* uses that of *calm*. *stress* and *smoke* use twice that.
- D_KL under replay is lower by definition. *k3, natural* is an estimate without replay. For R3 it is k3 times a ratio
  that is measured on responses that ran both ways. These are one prompt's responses at every step, few where N is
  large, and the estimate has no interval. Under R3, *expert sets that differ* are those that a router would choose
  while the layers below it replay.
- Columns: *T = 1* is the held-out accuracy at the end, sampled at temperature 1 in the sampler's precision, with its
  interval over the seeds. *peak* is the best of all its evaluations, the first included. *unquantised* is the
  accuracy at the end without quantisation. *greedy* has the beginning and the end. Entropy (nats), k3 of μ against
  π_old (nats) and the share of expert sets that differ are means over the last quarter of the steps.
- Pictures show the mean over the seeds, and a band of the middle three of five seeds. With fewer than four seeds, the
  band covers all. Reward, entropy and D_KL are averaged over {WINDOW} updates. A cross is the collapse of one run.
"""

ALARMS = f"""\
This section covers the figures in which a run collapsed. A quantity is averaged over {WINDOW} updates, as the reward
is. It raises an alarm beyond the {QUANTILE:.0%} quantile of all steps of the figure's stable runs with other seeds.
It announces a collapse if the alarm comes before the run's reward first drops below {FALLS_BELOW:.2f} of its best.
The next column counts the stable runs of the figure with an alarm by the same update. Where both shares are alike,
the quantity announces nothing. (The first version of this rule took two steps in a row without the average, and
measured the lead to the step from which the reward stays low. Some rewards recover for a while.)
"""

COURSES = f"""\
The same quantities around these collapses, in windows of {WINDOW} updates: the mean of each run, and the median of
those.
"""
