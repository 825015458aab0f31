package guard

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/portsnare/portsnare/detector"
)

// A Config says what is never banned besides what the guard finds out itself.
// The zero value is ready.
type Config struct {
	Allow []netip.Prefix // the administrator's addresses and prefixes
	Names []string       // the administrator's host names, looked up every five minutes

	// SSHPorts are the ports where administrators log in. The ports that an SSH
	// server of this host is seen to listen on are added; seeing that takes the
	// server's privileges. None stands for port 22.
	SSHPorts []uint16

	// Traps are the TCP ports where a connection is a probe. None of them counts
	// as a port where administrators log in, unless a server listens there:
	// then there is no trap.
	Traps detector.PortSet

	// ResolvConf are the files that name the host's DNS resolvers. Nil stands
	// for those of the C library, systemd-resolved and NetworkManager. It
	// cannot be changed later.
	ResolvConf []string
}

// A source is where the guard has part of the never-ban set from.
type source int

const (
	fromRules source = iota // the same on all hosts
	fromHost
	fromResolvConf
	fromSessions
	fromAllow
	fromNames
	sources // how many there are
)

// A Guard knows the never-ban set of this host at each moment. Spared, Allowed
// and Configure are safe for concurrent use and while Run runs.
type Guard struct {
	log    *logrus.Entry
	config atomic.Pointer[Config]
	parts  [sources]atomic.Pointer[set] // none is nil; each is replaced whole

	// The rest belongs to Watch until it returns, then to Run.

	host      *hostTables
	sessions  *sessionTables
	resolvers *resolverFiles
	names     nameBook

	renamed chan struct{}      // has room for one: look names up now
	warned  [sources]time.Time // when there may be the next warning
}

// Watch reads the never-ban set for the first time, in the network namespace of
// the calling thread, in which the process must stay. If the kernel cannot be
// asked, that is an error: nobody may be banned then. log tells of changes and
// failures; nil means silence.
//
// Names are not looked up before Run runs, for at boot there may be no DNS yet.
func Watch(config Config, log *logrus.Entry) (*Guard, error) {
	if log == nil {
		logger := logrus.New()
		logger.SetOutput(io.Discard)
		log = logrus.NewEntry(logger)
	}
	g := newGuard(config, log)
	var err error
	if g.host, err = openHostTables(); err != nil {
		return nil, err
	}
	if g.sessions, err = openSessionTables(); err != nil {
		return nil, errors.Join(err, g.host.close())
	}
	if err := errors.Join(g.readHost(), g.readSessions()); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	g.coped(fromResolvConf, g.readResolvers())
	return g, nil
}

// newGuard returns a guard that knows what needs no kernel.
func newGuard(config Config, log *logrus.Entry) *Guard {
	g := &Guard{
		log:       log,
		resolvers: newResolverFiles(config.ResolvConf),
		names:     newNameBook(net.DefaultResolver.LookupNetIP),
		renamed:   make(chan struct{}, 1),
	}
	for i := range g.parts {
		g.parts[i].Store(new(set))
	}
	g.parts[fromRules].Store(&fixedSet)
	g.Configure(config)
	return g
}

// Configure puts another configuration in force: its prefixes at once, its ports
// within a second, its names when they have been looked up. What was learned
// before is kept.
func (g *Guard) Configure(config Config) {
	config.Names = slices.Clone(config.Names)
	config.SSHPorts = slices.Clone(config.SSHPorts)
	allowed := make([]Entry, len(config.Allow))
	for i, p := range config.Allow {
		allowed[i] = Entry{p, whyAllowed}
	}
	g.put(fromAllow, allowed)
	config.Allow = nil // no longer needed, and the caller's
	g.config.Store(&config)
	select {
	case g.renamed <- struct{}{}:
	default:
	}
}

// Spared reports whether a ban of p, a host or a prefix, would hit anyone who
// must never be banned, and why in a short phrase for logs, such as "gateway".
// One address in common is enough. An IPv4-mapped prefix is taken as IPv4; an
// invalid one is spared, because no output could ban it truly.
//
// It neither blocks nor allocates.
func (g *Guard) Spared(p netip.Prefix) (why string, spared bool) {
	p = canonical(p)
	if !p.IsValid() {
		return "not an address", true
	}
	for i := range g.parts {
		if e, ok := g.parts[i].Load().overlapping(p); ok {
			return e.Why, true
		}
	}
	return "", false
}

// Allowed lists the never-ban set, the administrator's own entries last. What
// lies within another entry of the same origin is left out.
func (g *Guard) Allowed() []Entry {
	var all []Entry
	for i := range g.parts {
		all = append(all, *g.parts[i].Load()...)
	}
	return all
}

// put puts what a source says in force.
func (g *Guard) put(from source, entries []Entry) {
	s := newSet(entries)
	g.parts[from].Store(&s)
}

// Run follows changes until ctx ends, and then returns nil. A source that fails
// costs no more than a warning: what it said last stays in force.
func (g *Guard) Run(ctx context.Context) error {
	var tasks errgroup.Group
	for _, follow := range []func(context.Context){g.followHost, g.poll, g.followNames} {
		tasks.Go(func() error {
			follow(ctx)
			return nil
		})
	}
	return tasks.Wait()
}

// Close frees what Watch opened. Run must have returned; what is known stays in
// force.
func (g *Guard) Close() error { return errors.Join(g.host.close(), g.sessions.close()) }

const (
	// resyncInterval is how long the host's addresses and routes go unread when
	// there is no notice of a change.
	resyncInterval = 30 * time.Second

	// settlePause gathers the notices of changes that come together, so that
	// they cost one reading.
	settlePause = 50 * time.Millisecond

	// pollInterval is how often is read what gives no notice.
	pollInterval = time.Second

	// costRatio keeps reading below a twentieth of a CPU, however many routes and
	// connections there are; only above half a million routes it takes more, so
	// that resyncInterval holds.
	costRatio = 20
)

// followHost reads the host's addresses and routes whenever they may have
// changed.
func (g *Guard) followHost(ctx context.Context) {
	pause := settlePause
	for {
		err := g.host.await(ctx, pause)
		if ctx.Err() != nil {
			return
		}
		began := time.Now()
		g.coped(fromHost, errors.Join(err, g.readHost()))
		pause = min(max(time.Since(began)*costRatio, settlePause), resyncInterval)
	}
}

// poll reads the resolvers' files and the SSH sessions.
func (g *Guard) poll(ctx context.Context) {
	for {
		began := time.Now()
		g.coped(fromResolvConf, g.readResolvers())
		g.coped(fromSessions, g.readSessions())
		if !sleep(ctx, max(pollInterval, time.Since(began)*costRatio)) {
			return
		}
	}
}

func (g *Guard) readHost() error {
	entries, err := g.host.read()
	if err != nil {
		return err
	}
	g.put(fromHost, entries)
	return nil
}

func (g *Guard) readResolvers() error {
	entries, err := g.resolvers.read()
	g.put(fromResolvConf, entries)
	return err
}

func (g *Guard) readSessions() error {
	now := time.Now()
	changed, fault := g.sessions.findPorts(g.config.Load(), now)
	if changed {
		g.log.WithField("ports", g.sessions.ports).Info("peers of SSH sessions on these ports are never banned")
	}
	entries, err := g.sessions.read(now)
	g.put(fromSessions, entries)
	return errors.Join(fault, err)
}

// warningInterval is the least time between two warnings about one source.
const warningInterval = time.Minute

// sourceWarnings say that a source could not be read well.
var sourceWarnings = [sources]string{
	fromHost:       "own addresses and gateways cannot be read; those known before are spared",
	fromResolvConf: "DNS resolvers cannot be read; those known before are spared, too",
	fromSessions:   "SSH sessions cannot be read; those known before are spared",
	fromNames:      "names on the allow list cannot be looked up; their addresses known before are spared",
}

// coped tells now and then that a source could not be read well.
func (g *Guard) coped(from source, err error) {
	now := time.Now()
	if err == nil || now.Before(g.warned[from]) {
		return
	}
	g.warned[from] = now.Add(warningInterval)
	g.log.WithError(err).Warn(sourceWarnings[from])
}

// sleep waits and reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
