package detector

import (
	"errors"
	"net/netip"
	"time"
)

// Action says what an event tells of.
type Action uint8

// The actions. Only the first two tell of a probe.
const (
	ScanDetected   Action = iota // a source probed a trap port
	ScanIgnored                  // the same, by a source on the ignore list
	PacketsLost                  // the kernel or a full queue dropped what we did not see
	DaemonStarted                // capture is running
	DaemonStopped                // capture has ended
	ConfigReloaded               // a new configuration is in force
	ServiceReached               // a packet was for a trap port that a service holds (Policy.TellServices)
	AcceptFailed                 // a peer vanished before a trap knew it
	BanBegan                     // a ban is in force that no probe led to
	BanEnded                     // a ban has ended or was lifted
)

// An Event is a probe plus everything decided about it, or a fact about the
// daemon. Outputs receive it and must not keep a reference into it.
type Event struct {
	At       time.Time // arrival of the probe, or when the daemon noticed
	Sequence uint64    // counts events from 1 in the order of delivery; a gap is a loss
	Action   Action
	Probe    Probe // what was seen; of AcceptFailed the target port alone, of the daemon itself nothing

	// The outcome in PortSentry 2's four flags.
	Ignored   Tri // the source is on the ignore list
	Triggered Tri // the source reached the trigger
	NoBlock   Tri // the policy does not ban for this
	Blocked   Tri // a ban output confirmed the ban, now or before

	Held bool  // the source was banned before this probe, so nothing was done
	Acts []Act // what ban outputs did about this probe, in order; nobody changes them

	// Host is the resolved name of the source, which its owner chose: never
	// take an address from it. Empty when it is not known.
	Host string

	Ban *Ban // that began or ended (BanBegan, BanEnded); nobody changes it

	Lost   uint64 // packets or events lost since the last such event (PacketsLost)
	Reason string // why, in a sentence; empty when the rest says it all
}

// IsProbe reports whether the event tells of a probe.
func (e *Event) IsProbe() bool { return e.Action == ScanDetected || e.Action == ScanIgnored }

// An ActKind says which means of PortSentry's an [Act] is.
type ActKind uint8

// The kinds of acts.
const (
	ActRoute     ActKind = iota // KILL_ROUTE: a command that keeps the source out
	ActHostsDeny                // KILL_HOSTS_DENY: a line for TCP wrappers
	ActCommand                  // KILL_RUN_CMD: any other command
)

// ErrNoTarget says that a command or line names no source ($TARGET$), so that it
// cannot ban one.
var ErrNoTarget = errors.New("no $TARGET$ in it")

// An Act is one thing that a ban output did, or tried, to put a ban in force.
type Act struct {
	Kind    ActKind
	Text    string // the command or line, its tokens replaced
	Present bool   // nothing was to be done, the line was there
	Err     error  // nil: it was done
}

// Evidence grades what a ban rests on, weakest first.
type Evidence uint8

// The levels of evidence.
const (
	Forgeable  Evidence = iota // packets that anyone could have sent
	Pattern                    // several probes of one coherent kind
	Proven                     // the source answered something we sent
	ProvenTrap                 // and that connection was itself to a trap port
)

// A Ban says that a source stays out until a time, and why.
type Ban struct {
	Source   netip.Prefix // a host, or an IPv6 prefix
	Until    time.Time    // zero: until someone lifts it
	Evidence Evidence
	Reason   string
	Origin   string // who decided: "portsnare"
	Probe    Probe  // what led to it; the zero Probe if nothing did
}

// A Decision is the engine's answer to one probe.
type Decision struct {
	Event  Event
	Report bool // false: nothing to say
	Ban    *Ban // non-nil: make this ban effective before reporting Event
	Banner bool // a trap may answer with the banner
}
