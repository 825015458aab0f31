package runcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

var (
	_ outputapi.Module    = (*Module)(nil)
	_ outputapi.BanKeeper = (*Module)(nil)
	_ outputapi.Flusher   = (*Module)(nil)
)

// maxBans bounds the sources that are remembered.
const maxBans = 1 << 20

// A Module runs commands for bans that begin and end. Its zero value is ready to
// be configured.
//
// A command runs once for a ban, however often the ban is stated, and not again
// after a restart of the module or the daemon, which a journal in the state
// directory sees to. After a restart of the machine what bans runs again, and
// what only tells of a ban does not.
//
// When the time of a call is over, commands that run go on, within their own
// time; as nobody knows of their bans, ChangeBans then lifts these.
type Module struct {
	settings settings
	runner   Runner
	output   outputLog

	workers sync.WaitGroup

	mu      sync.Mutex
	journal *journal                 // guarded by mu, as is all below
	sources map[netip.Prefix]*source // that are banned, or about which something is to be done
	queue   []*source                // to be worked on, in order
	working int                      // workers
	noUnban bool                     // the log says that bans are not lifted
}

// A source is what is known, and wanted, of one source. The module's mutex guards
// it.
type source struct {
	tokens Tokens
	probe  bool // a probe led to the ban, over proto
	proto  detector.Proto

	wanted bool     // is to be kept out
	hold   hold     // is kept out
	told   bool     // Command has run for the ban
	undo   []string // lifts the ban; nil: nothing does

	settled chan struct{} // closed once nothing is left to be done; nil: nothing is
	result  outputapi.Result
}

// A hold says whether a ban is in force.
type hold uint8

const (
	free   hold = iota
	held        // its command succeeded
	unsure      // the command that lifts it failed
)

// Info says what the module is.
func (m *Module) Info() outputapi.Info {
	return outputapi.Info{
		Name:    "runcmd",
		Version: version.String(),
		Summary: "runs commands of yours when a ban begins and when it ends",
	}
}

// environment is that of commands: modules have none.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Configure takes the settings and reads the journal.
func (m *Module) Configure(_ context.Context, c outputapi.Configuration) error {
	s, err := readSettings(c)
	if err != nil || c.Check {
		return err
	}
	j, records, err := openJournal(c.StateDir)
	if err != nil {
		return err
	}
	m.settings = s
	m.runner = Runner{Env: environment, Timeout: s.timeout, IgnoreStatus: s.IgnoreStatus}
	m.journal = j
	m.sources = make(map[netip.Prefix]*source, len(records))
	for prefix, r := range records {
		known := &source{tokens: Tokens{Source: prefix}, told: r.Told, undo: r.Undo}
		if r.Held {
			known.hold = held
		}
		m.sources[prefix] = known
	}
	return nil
}

// SetBans bans whom no command has banned yet, and lifts all other bans.
func (m *Module) SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	m.mu.Lock()
	for _, s := range m.sources {
		s.wanted = false
	}
	wanted, results := m.wantLocked(bans)
	var lifted []*source
	for _, s := range m.sources {
		if !s.wanted {
			lifted = append(lifted, s)
		}
	}
	begun := append(m.beginLocked(lifted), m.beginLocked(wanted)...)
	m.mu.Unlock()
	// When the time is over, Portsnare states its bans again.
	if err := m.wait(ctx, begun); err != nil {
		return nil, err
	}
	return m.results(wanted, results), nil
}

// ChangeBans lifts remove and bans add.
func (m *Module) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	m.mu.Lock()
	var lifted []*source
	for i := range remove {
		prefix, _ := Source(remove[i].Source) // what is no source is not there
		if s := m.sources[prefix]; s != nil {
			s.wanted = false
			lifted = append(lifted, s)
		}
	}
	wanted, results := m.wantLocked(add)
	lifting, banning := m.beginLocked(lifted), m.beginLocked(wanted)
	m.mu.Unlock()
	if err := errors.Join(m.wait(ctx, lifting), m.wait(ctx, banning)); err != nil {
		m.withdraw(banning)
		return nil, err
	}
	return m.results(wanted, results), nil
}

var errFull = fmt.Errorf("the module remembers %d bans, its limit", maxBans)

// wantLocked notes who is to be banned. It returns the sources of bans, and the
// results of those that have none.
func (m *Module) wantLocked(bans []detector.Ban) ([]*source, []outputapi.Result) {
	wanted, results := make([]*source, len(bans)), make([]outputapi.Result, len(bans))
	for i := range bans {
		b := &bans[i]
		tokens, err := TokensOf(b, m.settings.mode)
		s := m.sources[tokens.Source]
		if err == nil && s == nil && len(m.sources) >= maxBans {
			err = errFull
		}
		if err != nil {
			results[i].Err = err
			continue
		}
		if s == nil {
			s = new(source)
			m.sources[tokens.Source] = s
		}
		s.tokens, s.probe, s.proto = tokens, b.Probe.Source.IsValid(), b.Probe.Proto
		s.wanted = true
		wanted[i] = s
	}
	return wanted, results
}

// wait waits until nothing is left to be done about the sources.
func (m *Module) wait(ctx context.Context, sources []*source) error {
	for _, s := range sources {
		m.mu.Lock()
		settled := s.settled
		m.mu.Unlock()
		if settled == nil {
			continue
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return fmt.Errorf("commands are still running: %w", ctx.Err())
		}
	}
	return nil
}

// withdraw has bans lifted of which the caller will not know that they are in
// force.
func (m *Module) withdraw(banning []*source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range banning {
		s.wanted = false
	}
	m.beginLocked(banning)
}

// results completes the results by what became of the sources.
func (m *Module) results(wanted []*source, results []outputapi.Result) []outputapi.Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range wanted {
		if s != nil {
			results[i] = s.result
		}
	}
	return results
}

// Flush waits for the commands that run.
func (m *Module) Flush(ctx context.Context) error {
	m.mu.Lock()
	var busy []*source
	for _, s := range m.sources {
		if s.settled != nil {
			busy = append(busy, s)
		}
	}
	m.mu.Unlock()
	return m.wait(ctx, busy)
}

// beginLocked has workers do what is left to be done about the sources, some of
// which may be nil, and returns those where there is something.
func (m *Module) beginLocked(sources []*source) []*source {
	var begun []*source
	for _, s := range sources {
		switch {
		case s == nil:
			continue
		case s.settled == nil && s.wanted && s.hold == held:
			s.result = outputapi.Result{} // nothing to tell this time
			continue
		case s.settled == nil:
			s.settled = make(chan struct{})
			m.queue = append(m.queue, s)
		}
		begun = append(begun, s)
	}
	for range min(len(m.queue), m.settings.Concurrency-m.working) {
		m.working++
		m.workers.Go(m.work)
	}
	return begun
}

// work does what is queued. Its commands are bounded by their own time, and thus
// by no context.
func (m *Module) work() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.queue) > 0 {
		s := m.queue[0]
		m.queue[0], m.queue = nil, m.queue[1:]
		m.settleLocked(s)
	}
	m.queue = nil
	m.working--
}

// settleLocked runs commands for s until it is what is wanted, which may change
// meanwhile, or a command fails.
func (m *Module) settleLocked(s *source) {
	for done := true; done; {
		switch {
		case s.wanted && s.hold != held:
			done = m.banLocked(s)
		case !s.wanted && s.hold != free:
			done = m.liftLocked(s)
		default:
			done = false
		}
	}
	if !s.wanted && s.hold == free {
		delete(m.sources, s.tokens.Source)
		if s.told { // of a ban that ended while the machine was down
			s.told = false
			m.noteLocked(s)
		}
	}
	close(s.settled)
	s.settled = nil
}

// banLocked runs the commands that ban, and reports whether they did.
func (m *Module) banLocked(s *source) bool {
	ask := *s
	m.mu.Unlock()
	result, told := m.ban(ask)
	undo, err := expandArgs(m.settings.Unban, ask.tokens)
	m.mu.Lock()
	s.result, s.told = result, told
	if result.Err = errors.Join(result.Err, err); result.Err != nil {
		s.wanted = false
		return false
	}
	s.hold, s.undo = held, undo
	m.noteLocked(s)
	return true
}

// liftLocked runs the command that lifts a ban, and reports whether to go on. One
// that fails runs again once the bans are stated anew: it may not be its rule that
// was missing.
func (m *Module) liftLocked(s *source) bool {
	args := s.undo
	if args == nil { // banned when there was no such command, maybe
		args, _ = expandArgs(m.settings.Unban, s.tokens)
	}
	err := error(nil)
	if args == nil {
		m.tellOfNoUnbanLocked()
	} else {
		m.mu.Unlock()
		err = m.runArgs(args)
		m.mu.Lock()
	}
	if err != nil {
		slog.Error("ban may still be in force, as the command that lifts it failed", "source", s.tokens.Source, "error", err)
		s.hold = unsure
		return s.wanted
	}
	s.hold, s.told = free, false
	m.noteLocked(s)
	return true
}

// tellOfNoUnbanLocked says once that bans end but nothing lifts them.
func (m *Module) tellOfNoUnbanLocked() {
	if !m.noUnban {
		slog.Warn("bans that end stay in force: the settings have no unban command")
	}
	m.noUnban = true
}

// noteLocked writes the journal.
func (m *Module) noteLocked(s *source) {
	m.journal.add(recordOf(s))
	if !m.journal.isLong(len(m.sources)) {
		return
	}
	records := make(map[netip.Prefix]record, len(m.sources))
	for prefix, s := range m.sources {
		if r := recordOf(s); r.Held || r.Told {
			records[prefix] = r
		}
	}
	if err := m.journal.rewrite(records); err != nil {
		m.journal.lines = 0 // to be tried again much later
		slog.Error("journal of bans cannot be shortened", "error", err)
	}
}

func recordOf(s *source) record {
	return record{Source: s.tokens.Source, Held: s.hold != free, Told: s.told, Undo: s.undo}
}
