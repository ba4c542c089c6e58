#!/bin/bash
# A Slurm of two nodes on this machine, as root, without systemd and cgroups.
#
#     tests/slurm/cluster.sh start FOLDER      nodes n1 and n2; all its files lie in FOLDER
#     tests/slurm/cluster.sh kill FOLDER n2    as a node is lost: its daemon and all its steps, at once
#     tests/slurm/cluster.sh up FOLDER n2      it comes back
#     tests/slurm/cluster.sh stop FOLDER
#
# Clients find it by SLURM_CONF=FOLDER/slurm.conf. From Debian: slurm-wlm, munge.
set -eu

action=$1 folder=$2 node=${3:-}
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
# Ports of its own, so that another Slurm of this machine is left alone.
port=${SLURM_TEST_PORT:-16817}

configure() {
    mkdir -p "$folder/state" "$folder/spool"
    # g1 to g300 are there on paper, as nodes of a cloud that nobody has started: Slurm says of a
    # large job whether it would take it (sbatch --test-only --partition=large).
    # cred_expire: how long a requeued job waits (120 s by default). KillWait: what a cancelled job
    # has to save in. SlurmdTimeout: how long a node may be silent.
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
SlurmctldPort=$port
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=30
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobcomp.log
GresTypes=gpu
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=3600
SuspendExcNodes=n1,n2
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 184)) CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 185)) CPUs=4 RealMemory=4000
NodeName=g[1-300] State=CLOUD NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1001))-$((port + 1300))] CPUs=64 RealMemory=4000 Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=large Nodes=g[1-300] State=UP
CONF
}

# In a PID namespace of its own: with its first process all of a node's processes end, those of its
# steps too, which outlive the mere daemon.
up() {
    setsid unshare --pid --fork --mount-proc --kill-child \
        slurmd -D -N "$1" -f "$SLURM_CONF" </dev/null >/dev/null 2>&1 &
    echo $! >"$folder/node-$1.pid"
}

end() { # the process in a file, if it is still there
    [ ! -e "$2" ] || kill "-$1" "$(cat "$2")" 2>/dev/null || :
}

case $action in
start)
    configure
    mkdir -p /run/munge
    chown munge /run/munge
    chmod 755 /run/munge
    munge -n >/dev/null 2>&1 || {
        runuser -u munge -- /usr/sbin/munged
        cp /run/munge/munged.pid "$folder/munged.pid"
    }
    slurmctld -f "$SLURM_CONF"
    up n1
    up n2
    for _ in $(seq 240); do
        [ "$(sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null | head -n 1)" = 2 ] && exit
        sleep 0.5
    done
    echo "the nodes do not come up: see $folder/slurmctld.log" >&2
    exit 1
    ;;
up) up "$node" ;;
kill) end KILL "$folder/node-$node.pid" ;;
stop)
    end KILL "$folder/node-n1.pid"
    end KILL "$folder/node-n2.pid"
    end TERM "$folder/slurmctld.pid"
    for _ in $(seq 60); do
        [ -e "$folder/slurmctld.pid" ] || break
        sleep 0.5
    done
    end TERM "$folder/munged.pid" # where it is ours
    ;;
*)
    echo "no such action: $action" >&2
    exit 2
    ;;
esac
