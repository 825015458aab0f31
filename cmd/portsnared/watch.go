package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/internal/blockfile"
	"github.com/portsnare/portsnare/internal/guard"
	"github.com/portsnare/portsnare/internal/state"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/names"
	"github.com/portsnare/portsnare/parsers/conf"
)

// A daemon is everything that runs while portsnared watches.
type daemon struct {
	persona

	traps      *capture.Traps        // nil in stealth mode
	opened     capture.TrapConfig    // what traps were asked to be
	services   *capture.Services     // nil in trap mode
	socket     *capture.PacketSocket // nil in trap mode
	guard      *guard.Guard          // nil if nobody is banned
	blocked    *blockfile.File       // nil if none is configured
	bans       *detector.Bans        // nil if there are none, or PortSentry's file keeps them
	saver      banSaver              // of bans
	state      *state.DB             // nil if nothing outlives the daemon
	modules    []runningModule
	orders     net.Listener // of the administrator's; nil if nobody can give any
	engine     *detector.Engine
	naming     *names.Stage // nil if sources get no names
	dispatcher *outputs.Dispatcher
	outputs    *outputSet

	guarded guard.Config   // by configuration
	allowed []netip.Prefix // by order of the operator, besides; guarded by controller.mu

	config      conf.Config        // in force; only reload changes it
	ignored     detector.PrefixSet // what the ignore files said
	ignoreFiles files              // as they were when last read
	unwritten   bool               // banned sources, as the log says; only reloadOn asks
	reported    losses             // so far
	leftOut     uint64             // probes without a line, so far told of
}

// watch reports probes until a signal ends it.
func (p persona) watch(cfg conf.Config) error {
	ctx, stop := untilSignal()
	defer stop()
	// Whoever read our output may go; detection stays. A signal that is ignored
	// would be ignored by the commands we start, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	d, err := newDaemon(p, cfg)
	if err != nil {
		return err
	}
	return errors.Join(d.run(ctx, hangup), d.close())
}

// impatience is how long after the first signal a second one means something else.
// Supervisors and timeout(1) may send the same twice.
const impatience = time.Second

// untilSignal returns a context that ends with SIGTERM or SIGINT. A second signal
// ends the process at once, unless it follows on the first.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, func() { time.AfterFunc(impatience, stop) })
	return ctx, stop
}

// newDaemon opens what needs privileges and builds everything, without
// starting anything.
func newDaemon(p persona, cfg conf.Config) (_ *daemon, err error) {
	d := &daemon{persona: p, config: cfg, ignoreFiles: filesOf(cfg.Detect.Ignore)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	// Traps come first: to stealth detection they are services like any other.
	if cfg.Mode != conf.Stealth {
		if err := d.openTraps(); err != nil {
			return nil, err
		}
	}
	if cfg.Mode != conf.Trap {
		if d.services, err = capture.NewServices(d.log); err != nil {
			return nil, err
		}
	}
	policy, err := d.newPolicy(cfg)
	if err != nil {
		return nil, err
	}
	d.ignored = policy.Ignore
	d.engine = detector.New(policy)
	if cfg.Mode != conf.Trap {
		if d.socket, err = capture.Open(sniffConfig(cfg, d.log)); err != nil {
			return nil, err
		}
	}
	if d.outputs, err = openOutputs(cfg, d.out, d.fault, d.form(cfg)); err != nil {
		return nil, err
	}
	enforcement, err := d.newEnforcement()
	if err != nil {
		return nil, err
	}
	d.naming = newNaming(cfg)
	d.dispatcher = outputs.NewDispatcher(d.log, enforcement, d.naming, d.outputs.named)
	d.listen()
	return d, nil
}

// openTraps opens the traps, and tells which it could not have.
func (d *daemon) openTraps() (err error) {
	d.opened = trapConfig(d.config, d.log)
	d.opened.AcceptFailed = d.acceptFailed
	d.traps, err = capture.OpenTraps(d.opened)
	if none, ok := errors.AsType[*capture.NoTrapsError](err); ok {
		d.refused(none.Refused)
	}
	if err != nil {
		return err
	}
	if refused := d.traps.Refused(); len(refused) > 0 {
		d.refused(refused)
	}
	return nil
}

// acceptFailed reports a connection that nobody will know the source of.
func (d *daemon) acceptFailed(port uint16, err error) {
	d.dispatcher.Tell(detector.Event{
		At: time.Now(), Action: detector.AcceptFailed,
		Probe:  detector.Probe{Proto: detector.TCP, Technique: detector.TechniqueConnect, Target: netip.AddrPortFrom(netip.IPv6Unspecified(), port)},
		Reason: "accept failed " + errnoText(err),
	})
}

// inUse returns the service check, nil in trap mode. A port that is redirected to
// a trap has no socket that could tell.
func (d *daemon) inUse() inUse {
	if d.services == nil {
		return nil
	}
	if d.traps == nil {
		return d.services.InUse
	}
	tcp, udp := d.traps.Ports()
	return func(proto detector.Proto, target netip.AddrPort) bool {
		trapped := tcp
		if proto == detector.UDP {
			trapped = udp
		}
		return trapped.Contains(target.Port()) || d.services.InUse(proto, target)
	}
}

// trapConfig says where to listen.
func trapConfig(cfg conf.Config, log *logrus.Entry) capture.TrapConfig {
	tcp, udp := cfg.Opened()
	return capture.TrapConfig{TCP: tcp, UDP: udp, Banner: []byte(cfg.Trap.Banner), Log: log}
}

// sniffConfig says what to capture; cfg.Interfaces may be a word for many.
func sniffConfig(cfg conf.Config, log *logrus.Entry) capture.SniffConfig {
	sniff := capture.SniffConfig{TCP: cfg.Detect.TCPPorts, UDP: cfg.Detect.UDPPorts, Broadcasts: cfg.Detect.Broadcasts, Log: log}
	switch {
	case slices.Contains(cfg.Interfaces, conf.AllInterfaces):
	case slices.Contains(cfg.Interfaces, conf.AllButLoopback):
		sniff.SkipLoopbacks = true
	default:
		sniff.Names = cfg.Interfaces
	}
	return sniff
}

// run watches until ctx ends, then drains what is on its way.
func (d *daemon) run(ctx context.Context, hangup <-chan os.Signal) error {
	// Outputs stop after capture, so that nothing captured is lost.
	dispatching, stopDispatcher := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDispatcher()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		d.dispatcher.Run(dispatching)
	}()

	tasks, ctx := errgroup.WithContext(ctx)
	failed := make(chan error, len(d.modules))
	restModules := d.runModules(func(err error) { failed <- err })
	d.active(d)
	d.tell(detector.DaemonStarted)

	if d.socket != nil {
		tasks.Go(func() error { return capture.Sniff(ctx, d.socket, d.observe) })
	}
	if d.traps != nil {
		tasks.Go(func() error { return capture.Trap(ctx, d.traps, d.observe) })
	}
	if d.services != nil {
		tasks.Go(func() error { return d.services.Run(ctx) })
	}
	if d.guard != nil {
		tasks.Go(func() error { return d.guard.Run(ctx) })
	}
	if d.bans != nil {
		tasks.Go(func() error { return d.saveBans(ctx) })
	}
	tasks.Go(func() error {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	if d.orders != nil {
		controller := d.newController()
		tasks.Go(func() error { return controller.serve(ctx) })
	}
	tasks.Go(func() error { return d.watchLosses(ctx) })
	tasks.Go(func() error { return d.reloadOn(ctx, hangup) })
	err := tasks.Wait()

	d.reportLosses() // of the last seconds
	d.tell(detector.DaemonStopped)
	stopDispatcher()
	<-drained
	restModules()
	if d.bans != nil {
		err = errors.Join(err, d.saver.save(true))
	}
	d.logCounters()
	return err
}

// observe takes a probe through the engine to the dispatcher.
func (d *daemon) observe(p detector.Probe) detector.Decision {
	decision := d.engine.Observe(p)
	d.dispatcher.Submit(decision)
	return decision
}

// tell reports something about the daemon itself.
func (d *daemon) tell(action detector.Action) {
	d.dispatcher.Tell(detector.Event{At: time.Now(), Action: action})
}

// close gives back what newDaemon opened; it also serves a half-built daemon.
func (d *daemon) close() error {
	var errs []error
	if d.socket != nil {
		errs = append(errs, d.socket.Close())
	}
	if d.services != nil {
		errs = append(errs, d.services.Close())
	}
	if d.traps != nil {
		errs = append(errs, d.traps.Close())
	}
	if d.guard != nil {
		errs = append(errs, d.guard.Close())
	}
	if d.blocked != nil {
		errs = append(errs, d.blocked.Close())
	}
	if d.outputs != nil {
		errs = append(errs, d.outputs.close())
	}
	if d.state != nil {
		errs = append(errs, d.state.Close())
	}
	return errors.Join(errs...)
}
