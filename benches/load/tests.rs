//! The generator against trackers that are right and trackers that are not.
