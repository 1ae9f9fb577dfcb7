//! Colours of the pictures: a method has the same in all of them.

pub type Colour = (u8, u8, u8);

/// They can be told apart with poor colour vision too. There are not enough such colours for all methods: those of the four-layer model's
/// pictures alone (CAKE, KV-Compress, TOVA) have the colours of methods that are never beside them.
pub const OF_METHODS: [(&str, Colour); 11] = [
    ("LAVa", (0, 0, 0)),
    (crate::methods::DEFAULT, (213, 94, 0)),
    ("SnapKV", (86, 180, 233)),
    ("CAKE", (0, 114, 178)),
    ("KV-Compress", (0, 158, 115)),
    ("TOVA", (204, 121, 167)),
    ("StreamingLLM", (150, 150, 150)),
    ("LKV", (200, 170, 0)),
    ("Ask again", (0, 114, 178)),
    ("KVzip", (0, 158, 115)),
    ("DefensiveKV", (204, 121, 167)),
];

/// The colour of a method that the list has.
pub fn of(method: &str) -> Colour {
    let found = OF_METHODS.iter().find(|(name, _)| *name == method);
    found.unwrap_or_else(|| panic!("{method} has no colour")).1
}

/// A cell of a heat map, from white for 0 to blue for 1, and whether white text is read better on it.
pub fn heat(share: f64) -> (Colour, bool) {
    let fade = |to: f64| (255.0 + (to - 255.0) * share) as u8;
    ((fade(0.0), fade(114.0), fade(178.0)), share > 0.6)
}
