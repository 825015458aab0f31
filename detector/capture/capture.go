// Package capture produces probes: Sniff from packets off the wire, Replay
// from a capture file, Trap from connections and datagrams to ports that it
// opened. The first two share one decoder, so that a file exercises everything
// but the socket, without root.
package capture

import "github.com/portsnare/portsnare/detector"

// An Observer takes one probe and says at once what was decided.
type Observer func(detector.Probe) detector.Decision
