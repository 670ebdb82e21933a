"""What the page of the lab says whatever the results are: what it is, how it is judged, how its tables are read."""

from steadyrl.collapse import FALLS_BELOW, STAYS, WINDOW
from steadyrl_lab.alarm import QUANTILE
from steadyrl_lab.verdict import ONE_SIDED

HEAD = """\
# Replication

<!-- Printed by `python -m steadyrl_lab report` from lab/results; edit lab/figures and run the arms instead. -->

The experiments of "Stabilizing Reinforcement Learning with LLMs: Formulation and Practices" (arXiv 2512.01374) at a
scale that runs on two CPU cores, with arms that the paper did not run. Every figure is a file in `lab/figures/`: its
regime, its arms, its seeds and the rule of each verdict. `python -m steadyrl_lab run FIGURE` makes the runs that have
no result yet (to rerun all of them, delete `lab/results/FIGURE.jsonl.xz` and `lab/runs/FIGURE` first).
`python -m steadyrl_lab report` packs the results and draws this page and its pictures from them.
"""

JUDGED = f"""\
- Arms of a figure share prompts, random numbers, the cold start (but in figure 5, which compares cold starts) and the
  number of gradient updates. The mini-batch is fixed: a global batch holds N of them, and gives N updates.
- A cold start ends at the first look at which its accuracy reaches its mark, on the problems and with the random
  numbers of the evaluations: the first value of every curve is chosen upwards, by about the noise of one look.
- A run has **collapsed** once its reward, averaged over {WINDOW} updates, is below {FALLS_BELOW:.2f} of its best so
  far, and stays there to the end, for at least {STAYS:.0%} of the run and two steps. A run that stopped over updates
  that were not finite has collapsed, and its final accuracy counts as 0. One that falls before it has risen has not
  collapsed; how many runs end no better than they began, by held-out accuracy, stands in brackets behind.
- Differences are paired by seed, with Student's 95% interval. *Replicated*: the whole interval lies on the claimed
  side. *Contradicted*: all of it lies on the other; the opposite was measured here, at this scale. Else *not visible
  here*: *undecided*, if the interval holds both, with the number of seeds at which it would just not, and which way, if
  mean and spread stay as they are.
- An interval over the seeds knows nothing of the noise of the evaluations themselves, which look at 512 problems in
  *calm*, *calm-32* and *stress* and at 256 in *long* and *deep*: about ±0.04 and ±0.06 each. Few seeds may agree more
  closely than that by luck, as R3 less R2 in *deep*.
- A share of runs has Wilson's interval, and is held against one half: with five seeds only 5 of 5 decides for it, and 0
  of 5 against it, each of which chance brings about in 3% of cases where one half is true. Whether one arm collapses
  more often than another is held to the same: the sign test over the seeds where they differ, {ONE_SIDED:.0%} on
  either side.
- A claim is replicated if all its rules are, and contradicted if one is; by chance alone a true claim with k rules is
  contradicted in up to k · 3% of cases. Words of a claim that no rule tests (*early*, *slightly*) are the paper's.
- A claim about what saves a run, or fails to, is not visible where the arm without clip and replay does not collapse in
  most runs. This is a count without an interval: there was *nothing*, or *too few*, *to be saved from*.
- A collapse *shows* if around it the entropy is below, or the divergence above, that of every stable run of the figure
  at the same updates.
- Rules were committed before the runs that they judge, with these exceptions. After figure 4 in *calm* and in *stress*
  had been drawn: what is said above of claims about saving a run, which turned two verdicts of figure 4 in *calm* from
  contradicted to not visible (C6, and that R3 alone does not save a run); that C8 wants its runs stable; how a collapse
  shows, which at first fired on stable runs as often as on collapses. After figure 1 in *calm* and figure 4 in *long*:
  the two steps that a collapse has to last, since one run of the latter fell in its very last. After figures 1 to 4 in
  *calm*, figure 4 in *stress* and on vLLM and most of *long*: the sign test, instead of Student's interval of
  differences of 0 and 1, which took 4 of 5 against none for decided in *stress*. Figure 4 in *deep* was cut from five
  seeds to three, for time, after six of its runs. A claim that was itself written after some of its runs says so.
- When *calm-32* was given a cold start that every seed reaches, its figures were run anew, as any change of a regime
  asks. Its engines had been found alike before, over three seeds, +0.013 [-0.004, +0.030], one of which had missed its
  mark.
- The learning rate was chosen by MiniRL alone in *calm* and *long*, on two of the seeds that are judged here, and in
  *deep* on one; *calm-32* takes that of *calm* over, *stress* and *smoke* double it.
- D_KL under replay is lowered by definition. *k3, natural* is without it: for R3, k3 times the ratio of both over the
  responses that ran both ways: one prompt's at every step, which is few where N is large, and has no interval.
  Expert sets that differ are, under R3, those that a router would choose while the layers below it replay.
- Columns: *T = 1* is held-out accuracy at the end, sampled at temperature 1 in the sampler's precision, with its
  interval over the seeds; *peak* the best of all its evaluations, the first included; *unquantised* is that at the
  end, *greedy* that at the beginning and at the end. Entropy (nats), k3 of μ against π_old (nats) and the share of
  expert sets that differ are means over the last quarter of the steps.
- Pictures: the mean over the seeds and a band of the middle three of five, of all where there are fewer than four;
  reward, entropy and D_KL are averaged over {WINDOW} updates. A cross is the collapse of one run.
"""

ALARMS = f"""\
Of the figures in which a run collapsed. A quantity is averaged over {WINDOW} updates, as the reward is; it sounds the
alarm beyond the {QUANTILE:.0%} quantile of all steps of the figure's stable runs with other seeds. It announces a
collapse if it sounds before the reward of that run is below {FALLS_BELOW:.2f} of its best for the first time. Beside it
stands how many of the figure's stable runs had sounded by the same update: where both are alike, it announces nothing.
(At first an alarm was two steps in a row without the average, and the lead ran to the step from which the reward stays
low; some rewards come back for a while.)
"""

COURSES = f"""\
The same quantities around these falls, in windows of {WINDOW} updates: the mean of each run, and the median of those.
"""
