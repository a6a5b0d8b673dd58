"""The Speculators config of a HASS draft, and how it is made from whatever names one."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator
from speculators import SpeculatorModelConfig
from transformers import LlamaConfig, PretrainedConfig

from ports.training.alignment import Alignment
from ports.training.draft_config import attach, load_layer


@SpeculatorModelConfig.register("hass")
class HassSpeculatorConfig(SpeculatorModelConfig):
    """A Llama draft that continues the verifier's last hidden state and speaks through the verifier's full head."""

    _auto_class: ClassVar[str | None] = None  # or transformers would copy this file into every checkpoint

    speculators_model_type: Literal["hass"] = "hass"
    architectures: list[str] = Field(
        default_factory=lambda: ["HassDraftModel"],
        description="Model architectures that can load these weights",
    )
    transformer_layer_config: PretrainedConfig = Field(
        default_factory=LlamaConfig,
        description="Configuration of the decoder layers; hidden and vocabulary size are the verifier's",
    )
    ttt_alignment: Literal["prototype", "chain"] = Field(
        default="chain",
        description="Where keys of earlier draft steps are read: at the query's position, or where the chain has them",
    )

    @field_serializer("transformer_layer_config")
    def serialize_layer(self, value: PretrainedConfig) -> dict[str, Any]:
        """The layer's config as JSON, without transformers' defaults."""
        return value.to_diff_dict()

    @field_validator("transformer_layer_config", mode="before")
    @classmethod
    def parse_layer(cls, value: Any) -> Any:
        """A Llama config from its JSON."""
        if isinstance(value, dict) and value.get("model_type", "llama") == "llama":
            return LlamaConfig.from_dict(value)
        return value


SpeculatorModelConfig.reload_schema()


def load_draft_config(
    configpath: str, basepath: str, ttt_steps: int, alignment: Alignment = Alignment.PROTOTYPE
) -> HassSpeculatorConfig:
    """The draft's config, attached to the verifier; other arguments and errors are those of ``draft_config.attach``.

    Args:
        configpath: the prototype's draft JSON, a Speculators config or checkpoint directory, or a hub id.
        alignment: how the draft will be trained; takes the place of the one that a Speculators config names.

    Raises:
        InputError: unreadable file, unknown key or value, another kind of speculator or of layer.
    """
    layer = load_layer(configpath, "hass")
    config = HassSpeculatorConfig(transformer_layer_config=layer, ttt_alignment=alignment.value)
    return attach(configpath, config, basepath, ttt_steps, alignment)
