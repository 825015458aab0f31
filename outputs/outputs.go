// Package outputs takes decisions from the engine to whoever acts on them or
// reads them. A [Dispatcher] settles bans first and then hands the finished
// events to every output, each with a queue of its own.
package outputs

import (
	"context"
	"errors"
	"net/netip"

	"github.com/portsnare/portsnare/detector"
)

// An Output takes events. Deliver returns nil once the output is responsible
// for all of them; after an error the same events come again. Events arrive in
// order and from one goroutine at a time. The slice is the dispatcher's: an
// output must not keep it.
type Output interface {
	Deliver(ctx context.Context, events []detector.Event) error
}

// A BanOutput makes bans effective. ChangeBans returns what came of each ban in
// add, in that order; no results and no error say that all are in force. After an
// error none is known to be. What is in force already is no error, and neither is
// the removal of what is not. The slices are the dispatcher's: an output must not
// keep them.
type BanOutput interface {
	ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]Result, error)
}

// A BanSetter is a BanOutput that can be told the whole truth: what is not among
// bans is lifted. It is told after a ChangeBans that failed, whatever that did.
type BanSetter interface {
	SetBans(ctx context.Context, bans []detector.Ban) ([]Result, error)
}

// A Result is what an output made of one ban.
type Result struct {
	Err  error          // nil: the ban is in force
	Acts []detector.Act // what was done or tried, in order; nil if there is nothing to tell
}

var (
	errNoOutput = errors.New("no output bans")
	errResults  = errors.New("answered for another number of bans")
)

// ErrNotBanning says that nobody can be banned by order.
var ErrNotBanning = errors.New("there is no output to ban with, or PortSentry's file of blocked sources keeps the bans")

// ErrDryRun says that nobody is banned in a dry run, by order neither.
var ErrDryRun = errors.New("this is a dry run, which bans nobody")

// A SparedError says that a source must never be banned.
type SparedError struct {
	Source netip.Prefix
	Why    string // such as "gateway"
}

func (e *SparedError) Error() string { return e.Source.String() + " is never banned: " + e.Why }

// An Appender takes a batch of records, each with its newline. After an error
// it has taken none of them.
type Appender interface {
	Append(records []byte) error
}
