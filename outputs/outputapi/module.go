package outputapi

import (
	"context"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// A Module is an output. What it is able to do it says by its methods: it is a
// [Deliverer], a [BanKeeper] or a [BanSource], or several of them, and a
// [Flusher] if it holds things back.
//
// Info may be called at any time. Configure is called once and before all
// others. After it, Deliver is called by one goroutine at a time, and so are
// SetBans and ChangeBans together; a Deliver and a ban call may overlap, for a
// slow server must not hold up a ban. Flush overlaps with none of them,
// WatchBans with all.
//
// Each call has a deadline, by which its context ends. Portsnare does not wait
// any longer: it takes the call for failed and makes it again later, perhaps to
// a fresh process. So each call must be repeatable. A panic is answered as an
// error.
type Module interface {
	// Info says what the module is, without settings and at once.
	Info() Info

	// Configure takes the settings. An error of type [Faults] tells the
	// administrator which keys are wrong; after any error the module is ended.
	Configure(ctx context.Context, c Configuration) error
}

// A Deliverer takes events. Nil says that the module is responsible for all of
// them; after an error all come again, and after a [*Partial] those that it says
// were not taken. The events are the module's to keep.
//
// Event.Sequence rises from 1 within one run of the daemon and may have gaps.
type Deliverer interface {
	Deliver(ctx context.Context, events []detector.Event) error
}

// A BanKeeper makes bans effective. Both methods return what came of each ban to
// be put in force, in their order; no results and no error say that all are in
// force. After an error none is known to be. The slices are the module's to keep.
type BanKeeper interface {
	// SetBans states all bans that are to be in force: whatever else the module
	// holds as a ban of Portsnare's is to be lifted. It comes once after each
	// start, whether or not there are bans, and whenever Portsnare is in doubt.
	SetBans(ctx context.Context, bans []detector.Ban) ([]Result, error)

	// ChangeBans puts bans in force, or gives them a new time, and lifts others,
	// of which only Source counts. To lift what is not there is no failure.
	ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]Result, error)
}

// A Flusher holds things back. Flush returns once nothing that the module is
// responsible for is in its memory alone. It comes before the module is ended.
type Flusher interface {
	Flush(ctx context.Context) error
}

// A BanSource knows bans that were made elsewhere. WatchBans tells of them until
// ctx ends, and begins with a Whole change. What tell returns is to be returned.
// Portsnare checks each ban as it does its own.
type BanSource interface {
	WatchBans(ctx context.Context, tell func(BanChange) error) error
}

// Info says what a module is.
type Info struct {
	Name    string // required: "slack"
	Version string // the module's own
	Summary string // what it does, in one sentence

	// Capabilities are the Linux capabilities without which the module cannot
	// work, such as "net_admin". It gets what its block in the configuration
	// grants, whatever it says here.
	Capabilities []string
}

// A Result is what came of one ban.
type Result struct {
	Err  error          // nil: the ban is in force
	Acts []detector.Act // what was done or tried, in order; nil if there is nothing to tell
}

// A BanChange tells of bans that were made elsewhere.
type BanChange struct {
	Add    []detector.Ban // were made, or have a new time
	Remove []detector.Ban // were lifted; only Source counts
	Whole  bool           // Add is all there are: those told before and not in it are lifted
}

// A Partial is the error of a Deliver that took some events, but not all.
type Partial struct {
	// Through is the sequence of the last event that the module is responsible
	// for, 0 if there is none. What comes after it comes again.
	Through uint64

	// Rejected are events up to Through that the module can never take, so that
	// Portsnare need not send them again. It counts and logs them.
	Rejected []Rejection

	// Err says why the events after Through were not taken; nil if there are
	// none.
	Err error
}

// A Rejection says that one event cannot be taken.
type Rejection struct {
	Sequence uint64
	Reason   string
}

// Error says why events were not taken.
func (p *Partial) Error() string {
	if p.Err != nil {
		return p.Err.Error()
	}
	if len(p.Rejected) > 0 {
		return p.Rejected[0].Reason
	}
	return "some events were not taken"
}

// Unwrap returns p.Err.
func (p *Partial) Unwrap() error { return p.Err }

// A Fault tells the administrator what is wrong with the settings.
type Fault struct {
	Key  string // in the settings, with dots between levels: "retry.limit"; empty if it is no single key's
	Text string // what is wrong and what to do about it
}

// Faults is the error of a Configure that finds the settings wrong. It should
// name all faults at once.
type Faults []Fault

// Error returns the faults with semicolons between them.
func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, fault := range f {
		texts[i] = fault.Text
		if fault.Key != "" {
			texts[i] = fault.Key + ": " + fault.Text
		}
	}
	return strings.Join(texts, "; ")
}

// An Ability names what a module is able to do, as "--describe" prints it.
type Ability string

// The abilities.
const (
	Delivers    Ability = "deliver"    // it is a [Deliverer]
	KeepsBans   Ability = "keep-bans"  // it is a [BanKeeper]
	Flushes     Ability = "flush"      // it is a [Flusher]
	WatchesBans Ability = "watch-bans" // it is a [BanSource]
)
