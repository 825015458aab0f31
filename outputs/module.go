package outputs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// How long a module may take, unless its configuration says otherwise.
const (
	startWithin   = 10 * time.Second
	deliverWithin = 10 * time.Second
	bansWithin    = 2 * time.Second
	banWithin     = 50 * time.Microsecond // more for each ban
	stopWithin    = 5 * time.Second
	exitWithin    = 3 * time.Second // to end after all else
)

const (
	// maxMissed is how many calls in a row may stay without an answer, of events
	// or of bans, until the process is taken for stuck and killed.
	maxMissed = 3

	// After a failure a module is started again after restartMin, doubling to
	// restartMax. One that worked for healthyAfter begins anew.
	restartMin, restartMax = time.Second, time.Minute
	healthyAfter           = 5 * time.Minute
)

// ErrNoBans says that a module has nothing to do with bans, so that its answer
// does not count.
var ErrNoBans = errors.New("the module keeps no bans")

// An AwayError says that the process of a module is not there to be called.
type AwayError struct {
	Since  time.Time // zero: it was never started
	Reason error     // nil: none is known yet
}

// Error says since when the module has been away, and why.
func (e *AwayError) Error() string {
	switch {
	case e.Since.IsZero():
		return "the module is not started"
	case e.Reason == nil:
		return "the module has been away since " + e.Since.Format(time.TimeOnly)
	}
	return fmt.Sprintf("the module has been away since %s: %v", e.Since.Format(time.TimeOnly), e.Reason)
}

// Unwrap returns e.Reason.
func (e *AwayError) Unwrap() error { return e.Reason }

// A ModuleConfig says what a module is and how it is run. Name and Places are
// required.
type ModuleConfig struct {
	Name     string // of its block, and of its program
	Places   ModulePlaces
	SHA256   []byte         // what its program must be; nil: any
	Settings map[string]any // of its block

	// Bans returns all bans that are to be in force. It must include each that
	// SetBans or ChangeBans was asked for before, whatever they returned: what a
	// module missed while it was away it learns from here. It must not block. Nil
	// is none.
	Bans func() []detector.Ban

	// Required has Run return an error if the first start fails, rather than try
	// again.
	Required bool

	Capabilities []uintptr // Linux capabilities that the process gets, which the daemon must have
	BootID       string    // tells this run of the daemon from any other
	HostVersion  string
	StateDir     string // of the module's own, absolute; empty: it has none

	// SocketDir is where each process gets a directory of its own to listen in.
	// Only the daemon's user may be able to write there, and as a path to a
	// socket is bounded, it should be short. Empty is the temporary directory.
	SocketDir string

	StartWithin   time.Duration // from the start until the settings are taken; 0: ten seconds
	DeliverWithin time.Duration // for each Deliver; 0: ten seconds
	BansWithin    time.Duration // for each ban call, and 50 µs for each ban; 0: two seconds
	StopWithin    time.Duration // for the calls under way at the stop, and again for Flush; 0: five seconds
}

func (c *ModuleConfig) bans() []detector.Ban {
	if c.Bans == nil {
		return nil
	}
	return c.Bans()
}

// A ModuleState is what a module is about.
type ModuleState string

// The states of a module.
const (
	ModuleStopped  ModuleState = "stopped"  // Run does not run
	ModuleStarting ModuleState = "starting" // its process learns its settings and bans
	ModuleRunning  ModuleState = "running"  // it takes events and bans
	ModuleEnding   ModuleState = "ending"   // its process is gone, or about to go
	ModuleWaiting  ModuleState = "waiting"  // it failed, and is started again later
)

// A ModuleStatus is what an administrator may want to know of a module.
type ModuleStatus struct {
	Name        string
	State       ModuleState
	Since       time.Time             // of State
	Description outputapi.Description // what it last said of itself; zero before
	PID         int                   // of its process; 0 if there is none
	Program     string                // the path of the program started last
	Restarts    uint64                // starts after the first
	LastError   error                 // why it failed last; nil: it never did
	Rejected    uint64                // events that it refused for good
	LogDropped  uint64                // lines of its log that came too fast
}

// A Module is an output in a process of its own. [Module.Run] keeps the process
// alive. While it is away, calls return an [*AwayError] at once; while it is told
// the bans they wait. A module without the ability takes all events, which it has
// no use for, and answers bans with [ErrNoBans].
//
// All methods are safe for concurrent use.
type Module struct {
	config ModuleConfig
	log    *logrus.Entry
	live   func(context.Context) (worked time.Duration, err error) // liveOnce, but for tests
	settle func()                                                  // closes settled, once

	events, bans *turn
	taken        taken // guarded by events

	rejected atomic.Uint64
	settled  chan struct{}

	mu       sync.Mutex
	status   ModuleStatus // guarded by mu
	away     AwayError    // guarded by mu; since when instance is nil
	instance *instance    // guarded by mu; nil while the module is away
}

var (
	_ Output    = (*Module)(nil)
	_ BanOutput = (*Module)(nil)
)

// NewModule returns a module that does nothing until Run. What it logs has the
// field "output".
func NewModule(c ModuleConfig, log *logrus.Entry) *Module {
	c.DeliverWithin = cmp.Or(c.DeliverWithin, deliverWithin)
	c.BansWithin = cmp.Or(c.BansWithin, bansWithin)
	c.StopWithin = cmp.Or(c.StopWithin, stopWithin)
	settled := make(chan struct{})
	m := &Module{
		config: c, log: log.WithField("output", c.Name),
		settled: settled, settle: sync.OnceFunc(func() { close(settled) }),
		events: newTurn(), bans: newTurn(),
		status: ModuleStatus{Name: c.Name, State: ModuleStopped, Since: time.Now()},
	}
	m.live = m.liveOnce
	return m
}

// Run keeps a process of the module alive until ctx ends; then it waits for the
// calls under way, has the module put away what it holds and ends it, all in
// bounded time. Let ctx end only once the dispatcher is at rest. Run may be
// called once.
func (m *Module) Run(ctx context.Context) error {
	defer m.settle()
	defer m.enter(ModuleStopped, nil)
	var delay backoff
	for first := true; ; first = false {
		m.begin(first)
		worked, err := m.live(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.enter(ModuleWaiting, err)
		m.settle()
		if first && worked == 0 && m.config.Required {
			return fmt.Errorf("output module %s: %w", m.config.Name, err)
		}
		pause := delay.next(worked)
		m.log.WithError(err).WithField("again_in", pause.Round(time.Millisecond)).Error("output module failed")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// Settled is closed as soon as the first start has succeeded or failed.
func (m *Module) Settled() <-chan struct{} { return m.settled }

// Status says how the module is.
func (m *Module) Status() ModuleStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Rejected = m.rejected.Load()
	if m.instance != nil {
		s.LogDropped += m.instance.process.log.dropped.Load()
	}
	return s
}

// A backoff reckons how long to wait before the next start.
type backoff struct{ last time.Duration }

// next returns how long to wait after a process that worked for so long: a
// little less than it says, so that modules that failed together do not come
// back at the same moment.
func (b *backoff) next(worked time.Duration) time.Duration {
	b.last = min(2*b.last, restartMax)
	if b.last == 0 || worked >= healthyAfter {
		b.last = restartMin
	}
	return b.last - rand.N(b.last/4)
}

// liveOnce starts a process and returns when it has ended, and for how long it
// worked: 0 says that it never did.
func (m *Module) liveOnce(ctx context.Context) (worked time.Duration, err error) {
	i, err := startModule(ctx, &m.config, m.log, false)
	if err != nil {
		return 0, err
	}
	defer m.count(i)
	defer i.end()
	if err := m.admit(ctx, i); err != nil {
		return 0, i.why(err)
	}
	began := time.Now()
	m.log.WithFields(logrus.Fields{
		"version": i.description.Version, "pid": i.process.pid, "program": i.process.program.path,
	}).Info("output module runs")
	select {
	case <-ctx.Done():
		m.dismiss()
		m.rest(ctx, i)
		return time.Since(began), nil
	case <-i.process.exited:
		m.dismiss()
		return time.Since(began), i.process.fate()
	}
}

// admit lets calls come, which have to wait until the module knows all bans.
// Those that came before are in what it is told; so nothing falls between.
func (m *Module) admit(ctx context.Context, i *instance) error {
	release, err := m.takeTurns(ctx)
	if err != nil {
		return err
	}
	defer release()
	m.events.missed, m.bans.missed = 0, 0

	m.mu.Lock()
	m.instance = i
	m.status.Description, m.status.PID, m.status.Program = i.description, i.process.pid, i.process.program.path
	m.mu.Unlock()
	if err := m.restate(ctx, i); err != nil {
		m.dismiss()
		return err
	}
	m.enter(ModuleRunning, nil)
	m.settle()
	return nil
}

// restate tells the module all bans.
func (m *Module) restate(ctx context.Context, i *instance) error {
	if !i.can(outputapi.KeepsBans) {
		return nil
	}
	bans := m.config.bans()
	ctx, cancel := context.WithTimeout(ctx, m.within(len(bans)))
	defer cancel()
	results, err := i.client.SetBans(ctx, bans)
	if err != nil {
		return fmt.Errorf("tell it %d bans: %w", len(bans), explain(ctx, err))
	}
	failed, why := 0, error(nil)
	for _, r := range results {
		if r.Err != nil {
			failed, why = failed+1, r.Err
		}
	}
	if failed > 0 {
		m.log.WithError(why).WithField("bans", failed).Error("bans are not in force")
	}
	return nil
}

// rest waits for the calls under way and has the module put away what it holds.
// Its time is bounded, as ctx has ended.
func (m *Module) rest(ctx context.Context, i *instance) {
	ctx = context.WithoutCancel(ctx)
	waiting, cancel := context.WithTimeout(ctx, m.config.StopWithin)
	defer cancel()
	release, err := m.takeTurns(waiting)
	if err != nil {
		m.log.WithError(err).Warn("output module stops in the middle of a call")
		return
	}
	defer release()
	if !i.can(outputapi.Flushes) {
		return
	}
	ctx, stop := context.WithTimeout(ctx, m.config.StopWithin)
	defer stop()
	if err := i.client.Flush(ctx); err != nil {
		m.log.WithError(explain(ctx, err)).Error("output module may have lost what it held")
	}
}

// dismiss keeps calls from coming.
func (m *Module) dismiss() {
	m.enter(ModuleEnding, nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.instance, m.status.PID = nil, 0
}

// count adds up what is counted for each process.
func (m *Module) count(i *instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.LogDropped += i.process.log.dropped.Load()
}

func (m *Module) begin(first bool) {
	m.enter(ModuleStarting, nil)
	if !first {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.status.Restarts++
	}
}

// enter notes the state, and the error that led to it.
func (m *Module) enter(state ModuleState, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.State, m.status.Since = state, time.Now()
	if err != nil {
		m.status.LastError = err
		m.away.Reason = err
	}
	switch {
	case state == ModuleRunning:
		m.away = AwayError{}
	case m.away.Since.IsZero():
		m.away.Since = m.status.Since
	}
}

// Deliver hands over events of this run of the daemon.
func (m *Module) Deliver(ctx context.Context, events []detector.Event) error {
	return m.DeliverOf(ctx, m.config.BootID, events)
}

// DeliverOf hands over events of the run of the daemon that bootID names, in
// rising order. After an error all are to come again, in the same order: those
// that the module has taken it is not given twice.
func (m *Module) DeliverOf(ctx context.Context, bootID string, events []detector.Event) error {
	err := m.call(ctx, m.events, outputapi.Delivers, m.config.DeliverWithin,
		func(ctx context.Context, c *outputapi.Client) error {
			left := m.taken.leftOf(bootID, events)
			if len(left) == 0 {
				return nil
			}
			err := c.Deliver(ctx, bootID, left)
			partial, ok := errors.AsType[*outputapi.Partial](err)
			if !ok {
				return err
			}
			m.taken = taken{bootID, partial.Through}
			m.tellRejected(partial.Rejected)
			return partial.Err
		})
	if errors.Is(err, errUnable) {
		return nil
	}
	return err
}

// taken is the last event that a module took of a delivery of which it did not
// take all.
type taken struct {
	bootID  string
	through uint64
}

func (t taken) leftOf(bootID string, events []detector.Event) []detector.Event {
	if bootID != t.bootID {
		return events
	}
	for len(events) > 0 && events[0].Sequence <= t.through {
		events = events[1:]
	}
	return events
}

func (m *Module) tellRejected(rejected []outputapi.Rejection) {
	if len(rejected) == 0 {
		return
	}
	m.rejected.Add(uint64(len(rejected)))
	m.log.WithFields(logrus.Fields{
		"events": len(rejected), "first": rejected[0].Sequence, "reason": rejected[0].Reason,
	}).Warn("output module rejected events")
}

// SetBans states all bans.
func (m *Module) SetBans(ctx context.Context, bans []detector.Ban) ([]Result, error) {
	return m.ban(ctx, len(bans), func(ctx context.Context, c *outputapi.Client) ([]outputapi.Result, error) {
		return c.SetBans(ctx, bans)
	})
}

// ChangeBans puts bans in force and lifts others.
func (m *Module) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]Result, error) {
	return m.ban(ctx, len(add)+len(remove), func(ctx context.Context, c *outputapi.Client) ([]outputapi.Result, error) {
		return c.ChangeBans(ctx, add, remove)
	})
}

func (m *Module) ban(
	ctx context.Context, n int, ask func(context.Context, *outputapi.Client) ([]outputapi.Result, error),
) ([]Result, error) {
	var results []Result
	err := m.call(ctx, m.bans, outputapi.KeepsBans, m.within(n),
		func(ctx context.Context, c *outputapi.Client) error {
			answers, err := ask(ctx, c)
			for _, a := range answers {
				results = append(results, Result(a))
			}
			return err
		})
	if errors.Is(err, errUnable) {
		return nil, ErrNoBans
	}
	return results, err
}

// within is how long a call about n bans may take.
func (m *Module) within(n int) time.Duration {
	return m.config.BansWithin + time.Duration(n)*banWithin
}

// call makes one call to the module, in its turn.
func (m *Module) call(
	ctx context.Context, t *turn, ability outputapi.Ability, within time.Duration,
	f func(context.Context, *outputapi.Client) error,
) error {
	if _, err := m.reach(ability); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := t.take(ctx); err != nil {
		return err
	}
	defer t.give()
	i, err := m.reach(ability) // who waited may find it gone
	if err != nil {
		return err
	}
	err = f(ctx, i.client)
	if t.miss(ctx, err) >= maxMissed {
		i.process.kill(fmt.Errorf("the module left %d calls in a row without an answer, the last: %w",
			maxMissed, explain(ctx, err)))
	}
	return explain(ctx, err)
}

// errUnable says that the module has not the ability for a call.
var errUnable = errors.New("the module has no use for it")

// reach returns the process to call.
func (m *Module) reach(ability outputapi.Ability) (*instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.Description.Name != "" && !slices.Contains(m.status.Description.Abilities, ability) {
		return nil, errUnable
	}
	if m.instance == nil {
		away := m.away
		return nil, &away
	}
	return m.instance, nil
}

// takeTurns keeps out calls of both kinds until release.
func (m *Module) takeTurns(ctx context.Context) (release func(), err error) {
	if err := m.events.take(ctx); err != nil {
		return nil, err
	}
	if err := m.bans.take(ctx); err != nil {
		m.events.give()
		return nil, err
	}
	return func() { m.bans.give(); m.events.give() }, nil
}

// A turn has calls of one kind come one at a time. One can stop waiting for it.
type turn struct {
	held   chan struct{}
	missed int // calls in a row that were not answered; for the holder
}

func newTurn() *turn { return &turn{held: make(chan struct{}, 1)} }

func (t *turn) take(ctx context.Context) error {
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for an earlier call: %w", ctx.Err())
	}
}

func (t *turn) give() { <-t.held }

// miss counts a call that was not answered, and returns how many in a row were
// not. An error is an answer, too; a call that the caller broke off says nothing.
func (t *turn) miss(ctx context.Context, err error) int {
	switch {
	case err == nil:
		t.missed = 0
	case isLate(ctx, err), status.Code(err) == codes.Unavailable:
		t.missed++
	case ctx.Err() == nil:
		t.missed = 0
	}
	return t.missed
}

// isLate reports whether a call failed because its time was over, which either
// side may be the first to notice.
func isLate(ctx context.Context, err error) bool {
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// explain makes an error of what a call returned that is fit for a log: the text
// is the module's.
func explain(ctx context.Context, err error) error {
	switch s, ok := status.FromError(err); {
	case err == nil:
		return nil
	case isLate(ctx, err):
		return fmt.Errorf("the module did not answer in time: %w", context.DeadlineExceeded)
	case ctx.Err() != nil:
		return ctx.Err()
	case ok && s.Code() == codes.Unknown: // what a module's plain errors are
		return outputv1.ToError(s.Message())
	case ok:
		return fmt.Errorf("%s: %w", s.Code(), outputv1.ToError(s.Message()))
	}
	return err
}
