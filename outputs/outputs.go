// Package outputs takes decisions from the engine to whoever acts on them or
// reads them. A [Dispatcher] settles bans first and then hands the finished
// events to every output, each with a queue of its own.
package outputs

import (
	"context"
	"errors"

	"github.com/portsnare/portsnare/detector"
)

// An Output takes events. Deliver returns nil once the output is responsible
// for all of them; after an error the same events come again. Events arrive in
// order and from one goroutine at a time. The slice is the dispatcher's: an
// output must not keep it.
type Output interface {
	Deliver(ctx context.Context, events []detector.Event) error
}

// A BanOutput makes bans effective. Ban returns what came of each, in their
// order; no results and no error say that all are in force. After an error none
// is known to be. The slice is the dispatcher's: an output must not keep it.
type BanOutput interface {
	Ban(ctx context.Context, bans []detector.Ban) ([]Result, error)
}

// A Result is what an output made of one ban.
type Result struct {
	Err  error          // nil: the ban is in force
	Acts []detector.Act // what was done or tried, in order; nil if there is nothing to tell
}

var (
	errNoOutput = errors.New("no output bans")
	errResults  = errors.New("the output answered for another number of bans")
)

// An Appender takes a batch of records, each with its newline. After an error
// it has taken none of them.
type Appender interface {
	Append(records []byte) error
}
