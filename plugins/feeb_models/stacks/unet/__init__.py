"""Skip connections from the first half of the layers to the second."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.StackSpec(
    "unet",
    build=f"{__name__}.unet:UNet",
    summary="U-net skip connections: layers of the second half also read, with learned weights, the input of their mirror in the first half.",
    reference="https://github.com/KellerJordan/modded-nanogpt",
    since="1.1",
    equation="s_l = r_l,   r_{l+1} = B_l(r_l)  in the first half;   r_{l+1} = B_l(r_l + w_l s_{L−1−l})  in the second      w_l 0 at first",
)
