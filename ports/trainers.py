"""The trainers' commands: training stands below evaluation, which decodes with a draft while it is trained."""

from __future__ import annotations

from ports.eagle3 import train as eagle3
from ports.evaluate.measure import acceptance_of
from ports.hass import train as hass
from ports.training.runs import train_command
from ports.training.settings import Eagle3Settings, HassSettings

train_eagle3 = train_command(Eagle3Settings, lambda settings: eagle3.execute(settings, acceptance_of(settings)))
train_hass = train_command(HassSettings, lambda settings: hass.execute(settings, acceptance_of(settings)))
