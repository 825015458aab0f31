package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/parsers/conf"
)

// A daemon is everything that runs while portsnared watches.
type daemon struct {
	options options
	log     *logrus.Entry

	traps      *capture.Traps        // nil in stealth mode
	opened     capture.TrapConfig    // what traps were asked to be
	services   *capture.Services     // nil in trap mode
	socket     *capture.PacketSocket // nil in trap mode
	engine     *detector.Engine
	dispatcher *outputs.Dispatcher
	outputs    *outputSet

	config      conf.Config // in force; only reload changes it
	ignoreFiles files       // as they were when last read
	reported    losses      // so far
}

// watch reports probes until a signal ends it.
func watch(o options, log *logrus.Entry, stdout io.Writer) error {
	ctx, stop := untilSignal()
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // whoever read our output may go; detection stays
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)

	cfg, err := loadConfig(o, log)
	if err != nil {
		return err
	}
	d, err := newDaemon(o, cfg, log, stdout)
	if err != nil {
		return err
	}
	return errors.Join(d.run(ctx, reload), d.close())
}

// untilSignal returns a context that ends with SIGTERM or SIGINT. A second
// signal ends the process at once.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// newDaemon opens what needs privileges and builds everything, without
// starting anything.
func newDaemon(o options, cfg conf.Config, log *logrus.Entry, stdout io.Writer) (_ *daemon, err error) {
	d := &daemon{options: o, log: log, config: cfg, ignoreFiles: filesOf(cfg.Detect.Ignore)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	// Traps come first: to stealth detection they are services like any other.
	if cfg.Mode != conf.Stealth {
		d.opened = trapConfig(cfg, log)
		if d.traps, err = capture.OpenTraps(d.opened); err != nil {
			return nil, err
		}
	}
	if cfg.Mode != conf.Trap {
		if d.services, err = capture.NewServices(log); err != nil {
			return nil, err
		}
	}
	policy, err := newPolicy(cfg, d.inUse(), log)
	if err != nil {
		return nil, err
	}
	d.engine = detector.New(policy)
	if cfg.Mode != conf.Trap {
		if d.socket, err = capture.Open(sniffConfig(cfg, log)); err != nil {
			return nil, err
		}
	}
	d.outputs, err = openOutputs(cfg, stdout)
	if err != nil {
		return nil, err
	}
	d.dispatcher = outputs.NewDispatcher(log, outputs.Enforcement{}, nil, d.outputs.named)
	return d, nil
}

// inUse returns the service check, nil in trap mode.
func (d *daemon) inUse() inUse {
	if d.services == nil {
		return nil
	}
	return d.services.InUse
}

// trapConfig says where to listen.
func trapConfig(cfg conf.Config, log *logrus.Entry) capture.TrapConfig {
	tcp, udp := cfg.Opened()
	return capture.TrapConfig{TCP: tcp, UDP: udp, Banner: []byte(cfg.Trap.Banner), Log: log}
}

// sniffConfig says what to capture; cfg.Interfaces may be a word for many.
func sniffConfig(cfg conf.Config, log *logrus.Entry) capture.SniffConfig {
	sniff := capture.SniffConfig{TCP: cfg.Detect.TCPPorts, UDP: cfg.Detect.UDPPorts, Log: log}
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
func (d *daemon) run(ctx context.Context, reload <-chan os.Signal) error {
	// Outputs stop after capture, so that nothing captured is lost.
	dispatching, stopDispatcher := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDispatcher()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		d.dispatcher.Run(dispatching)
	}()

	d.logActive()
	d.tell(detector.DaemonStarted)

	tasks, ctx := errgroup.WithContext(ctx)
	if d.socket != nil {
		tasks.Go(func() error { return capture.Sniff(ctx, d.socket, d.observe) })
	}
	if d.traps != nil {
		tasks.Go(func() error { return capture.Trap(ctx, d.traps, d.observe) })
	}
	if d.services != nil {
		tasks.Go(func() error { return d.services.Run(ctx) })
	}
	tasks.Go(func() error { return d.watchLosses(ctx) })
	tasks.Go(func() error { return d.reloadOn(ctx, reload) })
	err := tasks.Wait()

	d.reportLosses() // of the last seconds
	d.tell(detector.DaemonStopped)
	stopDispatcher()
	<-drained
	d.logCounters()
	return err
}

// logActive says what is watched.
func (d *daemon) logActive() {
	fields := logrus.Fields{"version": version.String(), "mode": d.config.Mode}
	if d.socket != nil {
		tcp, udp := d.config.Sniffed()
		fields["tcp_ports"], fields["udp_ports"] = tcp.Len(), udp.Len()
	}
	if d.traps != nil {
		tcp, udp := d.traps.Ports()
		fields["tcp_traps"], fields["udp_traps"] = tcp.Len(), udp.Len()
	}
	d.log.WithFields(fields).Info("portsnare is active")
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
	if d.outputs != nil {
		errs = append(errs, d.outputs.close())
	}
	return errors.Join(errs...)
}
