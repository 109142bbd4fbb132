"""The choices that settings of `mrpo/config/` have."""

from __future__ import annotations

from enum import StrEnum


class ToyFamily(StrEnum):
    """Families a toy model can be built of."""

    QWEN2_5_VL = "qwen2_5_vl"
    QWEN3_VL = "qwen3_vl"
    INTERNVL = "internvl"


class DataKind(StrEnum):
    """Where questions come from."""

    PHANTOM = "phantom"  # generated; no download
    JSONL = "jsonl"  # the internal format
    VQA_RAD = "vqa_rad"  # train.json / test.json and images/ as distributed


class OpenRule(StrEnum):
    """Which questions count as open-ended."""

    NON_YES_NO = "non_yes_no"  # the answer is another than yes or no
    OPEN = "open"  # the set itself marks the question as open
    ALL = "all"  # every question


class AdvantageKind(StrEnum):
    """How rewards become one advantage per completion."""

    GRPO = "grpo"
    GDPO = "gdpo"
    DR_GRPO = "dr_grpo"
    RLOO = "rloo"


class Shaping(StrEnum):
    """How verdicts become advantages of tokens."""

    MRPO = "mrpo"  # a wrong answer's invalid steps lose, the earlier the more
    PURE = "pure"  # each token adds the least reward of the steps from its own on
    PROCESS_SUPERVISION = "process_supervision"  # each token adds the normalised rewards of the steps from its own on
    NONE = "none"  # every token has its completion's advantage


# These give the process reward to the tokens of its steps, so that it is no part of the completion's advantage.
STEP_CREDITING = frozenset((Shaping.PURE, Shaping.PROCESS_SUPERVISION))


class Schedule(StrEnum):
    """How the penalty of an invalid step depends on its position."""

    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    REVERSED = "reversed"
    NONE = "none"


class Aggregation(StrEnum):
    """How token losses become one number."""

    SEQUENCE_MEAN = "sequence_mean"
    TOKEN_MEAN = "token_mean"
    CONSTANT = "constant"


class KLEstimator(StrEnum):
    """Schulman's estimators of KL(policy ‖ reference) per token."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class Ratio(StrEnum):
    """What the clipped importance ratio is measured over."""

    TOKEN = "token"  # each token's own (PPO, GRPO)
    SEQUENCE = "sequence"  # the completion's geometric mean (GSPO); averages token advantages away
    SEQUENCE_TOKEN = "sequence_token"  # its value, with each token's own gradient (GSPO-token)


class Importance(StrEnum):
    """Correction for completions sampled by other numerics or an older policy than old_logprobs are of."""

    NONE = "none"
    TRUNCATE = "truncate"  # weights above the cap are cut down to it (truncated importance sampling)
    MASK = "mask"  # tokens with a weight outside [floor, cap] get no gradient (IcePop)


class TruncatedPolicy(StrEnum):
    """What happens to a completion that the token limit cut."""

    KEEP = "keep"  # scored as it stands
    MASK = "mask"  # no gradient, out of the baseline


class JudgeFailurePolicy(StrEnum):
    """What happens to a completion whose judgement failed."""

    EXCLUDE = "exclude"  # it leaves the group baseline and gets no gradient
    ANSWER_ONLY = "answer_only"  # its group is scored without the process part
    FAIL = "fail"  # the training step raises


class StructuredReply(StrEnum):
    """How an endpoint is made to reply in the asked form. Whatever it replies is checked all the same."""

    JSON_SCHEMA = "json_schema"  # response_format with a strict schema
    JSON_OBJECT = "json_object"  # response_format that asks for some JSON; the form stands in the prompt
    TOOL_CALL = "tool_call"  # the arguments of a forced function call
    STRUCTURED_OUTPUTS = "structured_outputs"  # vLLM's own field
    NONE = "none"  # asked for in the prompt alone


class TokenLimitField(StrEnum):
    """What an endpoint calls the largest number of tokens of a reply."""

    MAX_COMPLETION_TOKENS = "max_completion_tokens"
    MAX_TOKENS = "max_tokens"
    NONE = "none"  # not sent


class OutagePolicy(StrEnum):
    """What happens while no endpoint of the judge answers."""

    WAIT = "wait"  # calls wait for one to come back, up to judge.max_outage_s
    FAIL = "fail"  # calls end as failures at once, and judge.on_failure decides


class JudgeKind(StrEnum):
    """Which judge rules on steps and answers."""

    ORACLE = "oracle"  # local server that rules on phantom data exactly
    LEXICAL = "lexical"  # local server that compares words; weak, for smoke tests on any data
    OPENAI_COMPATIBLE = "openai_compatible"
    VLLM = "vllm"  # a model served by vLLM for this run
    NONE = "none"  # answer-only rewards


LOCAL_KINDS = (JudgeKind.ORACLE, JudgeKind.LEXICAL)  # processes of ours that read no image and count no tokens

# Said on start and in the report.
LEXICAL_NOTICE = (
    "judge.kind=lexical compares words and knows no medicine: its verdicts try out the machinery and are no result"
)


class AnswerKind(StrEnum):
    """How the answer is scored."""

    EXACT = "exact"  # equal after normalisation: 1, else 0
    MIXED = "mixed"  # symbolic or exact equality, else lexical and semantic overlap
    JUDGE = "judge"  # the judge says whether it is correct: 1, else 0


class EncoderPlacement(StrEnum):
    """Where BERTScore's encoder runs."""

    IN_PROCESS = "in_process"  # in the driver
    ACTOR = "actor"  # in a Ray actor of its own


class WeightTransfer(StrEnum):
    """How weights reach the engines."""

    SHM = "shm"  # shared memory of one host; CPU
    NCCL = "nccl"  # across GPUs
    IPC = "ipc"  # learner and engine on one GPU


class Placement(StrEnum):
    """Which GPUs engines and learner ranks take."""

    SPLIT = "split"  # each its own
    COLOCATED = "colocated"  # a rank and an engine rank share one; the engine sleeps while the learner works


class Attention(StrEnum):
    """The learner's attention kernel."""

    AUTO = "auto"  # flash-attn where it is installed and the number format allows it, else torch's flash kernel or SDPA
    FLASH_ATTENTION_2 = "flash_attention_2"
    SDPA = "sdpa"


class LoraTransfer(StrEnum):
    """How adapter weights reach the engines."""

    MERGED = "merged"  # added to the base weights, which are sent whole
    ADAPTER = "adapter"  # alone, loaded beside the base weights that the engine has


class Device(StrEnum):
    """Where learner and engines run."""

    CPU = "cpu"
    GPU = "gpu"


class Dtype(StrEnum):
    """Number format of weights and activations."""

    AUTO = "auto"  # float32 on CPU, bfloat16 on GPU
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class BestMetric(StrEnum):
    """What the best checkpoint is best at, in evaluations during training."""

    ACCURACY = "accuracy"  # the higher the better
    EARLY_SHARE = "early_share"  # of the judged completions; the lower the better
    VALID_SHARE = "valid_share"  # of the judged steps; the higher the better


class CheckpointChoice(StrEnum):
    """Which checkpoint of a run."""

    LATEST = "latest"
    BEST = "best"


class WandbMode(StrEnum):
    """Whether and where Weights & Biases logs."""

    DISABLED = "disabled"
    OFFLINE = "offline"
    ONLINE = "online"
