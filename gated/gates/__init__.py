"""The vocabulary of gates: from a row of logits to a row of weights, and what is measured and asked of them.

A gate takes `logits: Float[Tensor, "*batch gates"]` and returns weights of the same shape, 0 where a gate is
shut; a logit of -inf shuts its gate. All randomness comes from `generator`; where `generator=None` is allowed
it means no noise. l: logits, T: temperature, p = softmax(l/T), s = sigmoid(l), S: the k largest, e: normal
noise, g: Gumbel noise, N: number of gates. Scores make the logits from features x; where they are a matrix's
work (l = x W) no function is needed.

| name                             | equation                                    | kind    | source          |
|----------------------------------|---------------------------------------------|---------|-----------------|
| `cosine_logits`                  | scale cos(x, e_i), or a perturbed cosine     | scores  | Li 2023         |
| `gaussian_logits`                | log b_i + log N(x; mu_i, Sigma_i)           | scores  | Xu 1994         |
| `student_t_logits`               | log b_i + log t_v(x; mu_i, Sigma_i)         | scores  | Peel 2000       |
| `laplace_logits`                 | minus the distance from x to a_i, over T     | scores  | Han 2024        |
| `softmax_gate`                   | p; T a number, a scalar or one per row      | soft    | Hinton 2015     |
| `entmax_gate`                    | [(a-1) l/T - t]_+^(1/(a-1)), 1 <= a <= 2    | soft*   | Peters 2019     |
| `sparsemax_gate`                 | [l/T - t]_+ (entmax with a = 2)             | soft*   | Martins 2016    |
| `topk_mask`                      | 1[i in S], ties to the lower index          | hard    |                 |
| `topk_gate`                      | softmax over S; another score may rank      | hard    | Shazeer 2017    |
| `softmax_topk_gate`              | p_i on S; `renormalise` divides by the sum  | hard    | Fedus 2021      |
| `noisy_topk_gate`                | `topk_gate` of l + std e                    | hard    | Shazeer 2017    |
| `NoisyTopKGate`                  | ... with l = x W, std = softplus(x W')      | hard    | Shazeer 2017    |
| `selection_probability`          | Phi((l_i - k-th largest noisy other)/std_i) | value   | Shazeer 2017    |
| `biased_sigmoid_gate`            | s_i / sum_S s, S: the k largest s + b       | hard    | DeepSeek 2024   |
| `SelectionBias`                  | ... with b += rate sign(mean load - load)   | hard    | Wang 2024       |
| `top_p_gate`                     | p_i on the shortest sorted prefix above P   | hard    | Huang 2024      |
| `expert_choice_gate`             | p_ti if t is in column i's top C            | hard    | Zhou 2022       |
| `probit_gate`                    | P(i = argmax_j l_j + s e_j)                 | soft    | Thurstone 1927  |
| `soft_moe_gate`                  | softmax over tokens, and over slots         | soft    | Puigcerver 2024 |
| `dense_to_sparse_gate`           | p_i of l + g, where p_i > P                 | soft*   | Nie 2021        |
| `DenseToSparseGate`              | ... with T from a schedule                  | soft*   | Nie 2021        |
| `gumbel_softmax_gate`            | softmax((l + g)/T), or its largest one-hot  | either  | Jang 2017       |
| `gumbel_topk_gate`               | 1 on the k largest l + g, straight-through  | hard    | Kool 2019       |
| `gumbel_topk_sample`             | the order of the k largest l + g            | hard    | Kool 2019       |
| `plackett_luce_log_prob`         | sum_j l_(i_j) - logsumexp of those left     | value   | Plackett 1975   |
| `binary_gate`                    | 1[s > c] or Bernoulli(s), straight-through  | hard    | Bengio 2013     |
| `gumbel_sigmoid_gate`            | y = sigmoid((l + g - g')/T), or 1[y > 1/2]  | either  | Maddison 2017   |
| `hard_concrete_gate`             | clip(low + (high - low) y, 0, 1)            | soft*   | Louizos 2018    |
| `hard_concrete_mode`             | clip(low + (high - low) s, 0, 1), no noise  | soft*   | Louizos 2018    |
| `hard_concrete_open_probability` | P(z != 0) = sigmoid(l - T log(-low/high))   | value   | Louizos 2018    |
| `HardConcrete`                   | ... with learnable l                        | soft*   | Louizos 2018    |
| `straight_through`               | value of `hard`, gradient of `soft`         | hard    | Bengio 2013     |
| `add_gaussian_noise`             | l + std e                                   | noise   | Shazeer 2017    |
| `add_gumbel_noise`               | l + g                                       | noise   | Gumbel 1954     |
| `constant_schedule`              | T                                           | T(step) |                 |
| `linear_schedule`                | (1 - r) start + r end, r = min(t/steps, 1)  | T(step) |                 |
| `exponential_schedule`           | start^(1-r) end^r                           | T(step) | Jang 2017       |
| `cosine_schedule`                | end + (start - end) (1 + cos(pi r))/2       | T(step) | Loshchilov 2017 |
| `load`                           | number of rows in which gate i is open      | value   | Shazeer 2017    |
| `importance`                     | sum over rows of w_i                        | value   | Shazeer 2017    |
| `coefficient_of_variation`       | population std / mean                       | value   | Shazeer 2017    |
| `entropy`                        | H = -sum w log w, in nats                   | value   | Shannon 1948    |
| `effective_gates`                | exp(H)                                      | value   | Hill 1973       |
| `importance_loss`                | CoV(importance)^2                           | loss    | Shazeer 2017    |
| `load_loss`                      | CoV(sum of selection probabilities)^2       | loss    | Shazeer 2017    |
| `switch_loss`                    | N sum f_i Q_i, 1 at balance                 | loss    | Fedus 2021      |
| `z_loss`                         | mean (logsumexp l)^2                        | loss    | Zoph 2022       |

scores: features to logits; soft: smooth in the logits; soft*: with exact zeros; hard: a selection; either: by
the argument `hard`.
"""

from gated.gates.binary import (
    HardConcrete,
    binary_gate,
    gumbel_sigmoid_gate,
    hard_concrete_gate,
    hard_concrete_mode,
    hard_concrete_open_probability,
    straight_through,
)
from gated.gates.choice import expert_choice_gate, probit_gate, soft_moe_gate, top_p_gate
from gated.gates.dense_to_sparse import DenseToSparseGate, dense_to_sparse_gate
from gated.gates.gumbel import (
    gumbel_softmax_gate,
    gumbel_topk_gate,
    gumbel_topk_sample,
    plackett_luce_log_prob,
)
from gated.gates.losses import importance_loss, load_loss, switch_loss, z_loss
from gated.gates.noise import add_gaussian_noise, add_gumbel_noise
from gated.gates.schedules import constant_schedule, cosine_schedule, exponential_schedule, linear_schedule
from gated.gates.scores import cosine_logits, gaussian_logits, laplace_logits, student_t_logits
from gated.gates.sigmoid import SelectionBias, biased_sigmoid_gate
from gated.gates.soft import entmax_gate, softmax_gate, sparsemax_gate
from gated.gates.statistics import coefficient_of_variation, effective_gates, entropy, importance, load
from gated.gates.topk import (
    NoisyTopKGate,
    noisy_topk_gate,
    selection_probability,
    softmax_topk_gate,
    topk_gate,
    topk_mask,
)

__all__ = [
    "DenseToSparseGate", "HardConcrete", "NoisyTopKGate", "SelectionBias", "add_gaussian_noise",
    "add_gumbel_noise", "biased_sigmoid_gate", "binary_gate", "coefficient_of_variation", "constant_schedule",
    "cosine_logits", "cosine_schedule", "dense_to_sparse_gate", "effective_gates", "entmax_gate", "entropy",
    "expert_choice_gate", "exponential_schedule", "gaussian_logits", "gumbel_sigmoid_gate",
    "gumbel_softmax_gate", "gumbel_topk_gate", "gumbel_topk_sample", "hard_concrete_gate",
    "hard_concrete_mode", "hard_concrete_open_probability", "importance", "importance_loss", "laplace_logits",
    "linear_schedule", "load", "load_loss", "noisy_topk_gate", "plackett_luce_log_prob", "probit_gate",
    "selection_probability", "soft_moe_gate", "softmax_gate", "softmax_topk_gate", "sparsemax_gate",
    "straight_through", "student_t_logits", "switch_loss", "top_p_gate", "topk_gate", "topk_mask", "z_loss",
]  # fmt: skip
