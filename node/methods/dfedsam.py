"""DFedSAM: flat minima average better; and several gossip steps a round.

*Improving the Model Consistency of Decentralized Federated Learning* (2023),
https://arxiv.org/abs/2302.04083. Peer i takes its inner steps with gradients at a distance rho:

    g = grad F(y; batch),  delta = rho g / ||g||,  y <- y - eta grad F(y + delta; batch)

which `training.sam` does, and then Q times over (multiple gossip steps, W^Q):

    x_i <- sum_j W_ij y_j

W is symmetric and doubly stochastic: the meetings of a round, a new matching in each of the Q
steps. The exchange itself is D-PSGD's. rho = 0 and Q = 1 is decentralized FedAvg; a large Q tends
to the exact mean.

Differences from the paper: eta grad is the inner optimizer's step, whichever that is; W is a
matching, a ring in turns or groups instead of one fixed graph.
"""

from node.methods.dfedsam_config import DFedSamConfig
from node.methods.parts.setup import Setup
from node.training.inner import InnerWork
from node.training.sam import SamTrainer


def trainer(config: DFedSamConfig, setup: Setup) -> InnerWork:
    """Raises ConfigError when the model cannot be trained so."""
    return SamTrainer(
        config.inner, setup.model, setup.loss, setup.data.batch, setup.optimizer,
        radius=config.radius,
    )  # fmt: skip
