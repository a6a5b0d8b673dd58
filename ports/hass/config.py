"""The Speculators config of a HASS draft."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator
from speculators import SpeculatorModelConfig
from transformers import LlamaConfig, PretrainedConfig

from ports.training.draft_config import DRAFT_LAYERS


@SpeculatorModelConfig.register("hass")
class HassSpeculatorConfig(SpeculatorModelConfig):
    """A Llama draft that continues the verifier's last hidden state and speaks through the verifier's full head.

    Raises:
        ValueError: a layer that is not a Llama layer, or several layers in prototype alignment, which gives every
            layer the first one's history.
    """

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
        fields: dict[str, Any] = value.to_diff_dict()
        return fields

    @field_validator("transformer_layer_config", mode="before")
    @classmethod
    def parse_layer(cls, value: Any) -> Any:
        """A Llama config from its JSON."""
        if isinstance(value, dict) and value.get("model_type", "llama") == "llama":
            return LlamaConfig.from_dict(value)
        return value

    @model_validator(mode="after")
    def check_layers(self) -> "HassSpeculatorConfig":
        """Only Llama layers, and only one of them in prototype alignment."""
        layer = self.transformer_layer_config
        if layer.model_type not in DRAFT_LAYERS["hass"]:
            expected = " or ".join(DRAFT_LAYERS["hass"])
            raise ValueError(f"transformer_layer_config.model_type: found {layer.model_type}, expected {expected}")
        if self.ttt_alignment == "prototype" and layer.num_hidden_layers > 1:
            raise ValueError(f"num_hidden_layers: found {layer.num_hidden_layers}, expected 1 in prototype alignment")
        return self


SpeculatorModelConfig.reload_schema()
