// Package detector decides what a probe means. It is pure: it opens nothing,
// logs nothing and reads no clock, so that the same probes always give the
// same decisions, live or from a capture.
//
// A [Probe] is what was seen, a [Decision] is the [Engine]'s answer to it, and
// an [Event] is the probe together with everything that was decided.
package detector
